"""Both rules against loops that are obviously right, in float64."""

import math

import pytest
import torch
from torch import Tensor

from expunge.core.fisher import Fisher, code_gradients, code_losses, forget_terms
from expunge.core.rules.natural import compute_direction
from expunge.core.rules.paper import Ratio, compute_change, compute_ratio, compute_shape
from expunge.models import build_model

CLASSES = torch.arange(5)
FORGET = CLASSES == 2
LAMBDAS = (1e-2, 3.0)


def draw(seed: int, shapes: dict[str, tuple[int, ...]] | None = None) -> Fisher:
    generator = torch.Generator().manual_seed(seed)
    shapes = shapes or {"hidden.weight": (4, 3), "hidden.bias": (4,), "head.weight": (2, 4)}
    return {
        name: torch.rand(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def change_weights(
    weights: Fisher, ratio: Ratio, sign: int, lambdas: tuple[float, float]
) -> Fisher:
    return compute_change(compute_shape(weights, ratio), ratio, sign, lambdas)


def slow_ratio(forget_W: Tensor, retain_W: Tensor) -> list[float]:
    """One element at a time; what has no finite ratio waits for the largest of the others."""
    finite = [
        f / r if f else 0.0 for f, r in zip(forget_W.tolist(), retain_W.tolist(), strict=True) if r
    ]
    return [
        (f / r if r else max(finite, default=0.0)) if f else 0.0
        for f, r in zip(forget_W.tolist(), retain_W.tolist(), strict=True)
    ]


def slow_paper_change(
    weights: Fisher, forget: Fisher, retain: Fisher, *, sign: int, lambdas: tuple[float, float]
) -> Fisher:
    """Compute the paper's rule, one tensor and one element at a time."""
    lambda1, lambda2 = lambdas
    change = {}
    for name, weight_W in weights.items():
        ratios = slow_ratio(forget[name].flatten(), retain[name].flatten())
        largest = max(ratios)
        strength = lambda1
        if largest > 0 and lambda2 / largest < lambda1:
            strength = lambda2 / largest
        rows = [sign * strength * r * w for r, w in zip(ratios, weight_W.flatten(), strict=True)]
        change[name] = torch.stack(rows).reshape(weight_W.shape)
    return change


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("lambda1", [1e-3, 0.5, 100.0])
def test_the_papers_rule_equals_the_slow_loop(sign: int, lambda1: float) -> None:
    weights, forget, retain = draw(1), draw(2), draw(3)
    retain["hidden.bias"] *= 1e-3  # ratios by tensor far apart: lambda2 bounds some and not others
    forget["head.weight"][0, 1] = retain["hidden.weight"][2, 2] = retain["head.weight"][0, 1] = 0
    ratio = compute_ratio(forget, retain)
    fast = change_weights(weights, ratio, sign, (lambda1, 2.0))
    slow = slow_paper_change(weights, forget, retain, sign=sign, lambdas=(lambda1, 2.0))
    assert fast.keys() == slow.keys()
    for name, expected in slow.items():
        torch.testing.assert_close(fast[name], expected, rtol=1e-12, atol=0)


def test_the_strength_is_bounded_tensor_by_tensor() -> None:
    """With the largest r at 10 and 1000, lambda1 = 0.01 holds for one, lambda2 / 1000 for other."""
    weights = {"small": torch.ones(2, dtype=torch.float64), "large": torch.ones(2).double()}
    forget = {"small": torch.tensor([10.0, 1.0]), "large": torch.tensor([1000.0, 1.0])}
    retain = {name: torch.ones(2) for name in forget}
    change = change_weights(weights, compute_ratio(forget, retain), 1, LAMBDAS)
    assert change["small"].tolist() == pytest.approx([0.1, 0.01])
    assert change["large"].tolist() == pytest.approx([3.0, 0.003])


@pytest.mark.parametrize("lambdas", [(0.0, 0.0), (0.0, 3.0), (1e-2, 0.0)])
def test_zero_lambdas_change_nothing(lambdas: tuple[float, float]) -> None:
    change = change_weights(draw(1), compute_ratio(draw(2), draw(3)), 1, lambdas)
    assert all(not part.any() for part in change.values())


def test_the_sign_flips_the_change() -> None:
    weights, ratio = draw(1), compute_ratio(draw(2), draw(3))
    up, down = (change_weights(weights, ratio, sign, LAMBDAS) for sign in (1, -1))
    assert all(torch.equal(up[name], -down[name]) for name in weights)
    assert all(part.gt(0).all() for part in up.values())  # weights and ratios are positive here


def test_the_change_has_the_weights_own_type() -> None:
    weights = {name: value.float() for name, value in draw(1).items()}
    change = change_weights(weights, compute_ratio(draw(2), draw(3)), 1, LAMBDAS)
    assert {part.dtype for part in change.values()} == {torch.float32}


def test_nothing_over_nothing_is_nothing() -> None:
    zeros = {"w": torch.zeros(2, 2, dtype=torch.float64)}
    ratio = compute_ratio(zeros, zeros)
    assert ratio.values["w"].tolist() == [[0, 0], [0, 0]]
    assert (ratio.largest, ratio.unbounded) == ({"w": 0.0}, 0)
    change = change_weights({"w": torch.ones(2, 2)}, ratio, 1, LAMBDAS)
    assert change["w"].tolist() == [[0, 0], [0, 0]]


def test_a_weight_of_the_forgotten_classes_alone_takes_the_largest_finite_ratio() -> None:
    forget = {"w": torch.tensor([2.0, 6.0, 5.0, 0.0]), "v": torch.tensor([1.0, 0.0])}
    retain = {"w": torch.tensor([1.0, 2.0, 0.0, 0.0]), "v": torch.tensor([0.0, 4.0])}
    ratio = compute_ratio(forget, retain)
    assert ratio.values["w"].tolist() == [2, 3, 3, 0]
    assert ratio.values["v"].tolist() == [0, 0]  # no finite ratio above 0: nothing to go by
    assert ratio.largest == {"w": 3.0, "v": 0.0}
    assert ratio.unbounded == 2
    change = change_weights({name: torch.ones(4 if name == "w" else 2) for name in forget}, ratio,
                          1, (100.0, 6.0))  # fmt: skip
    assert change["w"].tolist() == [4, 6, 6, 0]
    assert change["v"].tolist() == [0, 0]


def test_a_common_factor_of_both_fishers_cancels() -> None:
    forget, retain = draw(2), draw(3)
    ratio = compute_ratio(forget, retain)
    scaled = compute_ratio(*({n: 1e-30 * v for n, v in part.items()} for part in (forget, retain)))
    for name, value in ratio.values.items():
        torch.testing.assert_close(scaled.values[name], value)
        assert ratio.largest[name] == float(value.max())


def test_the_natural_direction_equals_the_slow_loop() -> None:
    gradient, retain = draw(4), draw(5)
    gradient["hidden.weight"] -= 0.5
    retain["head.weight"].zero_()  # no retained code touches it, so it has no damping either
    direction = compute_direction(gradient, retain)
    slow = {}
    for name, gradient_W in gradient.items():
        fishers = retain[name].flatten().tolist()
        damping = sum(fishers) / len(fishers)
        slow[name] = [
            g / (f + damping) if f + damping > 0 else 0.0
            for g, f in zip(gradient_W.flatten().tolist(), fishers, strict=True)
        ]
    norm = math.sqrt(sum(value**2 for row in slow.values() for value in row))
    for name, row in slow.items():
        assert direction[name].flatten().tolist() == pytest.approx([v / norm for v in row])
    assert not direction["head.weight"].any()


def test_the_natural_direction_has_norm_one_whatever_the_gradients_size() -> None:
    gradient, retain = draw(4), draw(5)
    first = compute_direction(gradient, retain)
    second = compute_direction({name: 1e-12 * g for name, g in gradient.items()}, retain)
    for direction in (first, second):
        squares = sum(float(part.square().sum()) for part in direction.values())
        assert squares == pytest.approx(1, abs=1e-12)
    for name, part in first.items():
        torch.testing.assert_close(second[name], part)


def test_the_natural_direction_ascends_the_forgotten_codes_loss() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build_model("mlp", (1, 4, 4), 5).double()
        codes_KCHW = torch.rand(5, 1, 4, 4, dtype=torch.float64)
    terms = forget_terms(model, codes_KCHW, CLASSES, FORGET)
    direction = compute_direction(terms.gradient, terms.retain)
    slope = sum(float((direction[name] * g).sum()) for name, g in terms.gradient.items())
    assert slope > 0
    with torch.no_grad():
        before = code_losses(model(codes_KCHW), CLASSES)[FORGET].mean()
        for name, parameter in model.named_parameters():
            parameter.add_(1e-4 * direction[name])
        after = code_losses(model(codes_KCHW), CLASSES)[FORGET].mean()
    assert float(after - before) == pytest.approx(1e-4 * slope, rel=0.01)


def test_the_natural_direction_spares_what_the_retained_codes_need() -> None:
    gradient = {"w": torch.ones(4, dtype=torch.float64)}
    direction = compute_direction(gradient, {"w": torch.tensor([0.0, 0.0, 1.0, 7.0]).double()})
    assert direction["w"][0] == direction["w"][1] > direction["w"][2] > direction["w"][3] > 0
    assert float(direction["w"][0] / direction["w"][3]) == pytest.approx((7 + 2) / 2)


@pytest.mark.parametrize(("value", "norm"), [(0.0, "0.0"), (math.nan, "nan"), (math.inf, "inf")])
def test_no_direction_without_a_finite_gradient(value: float, norm: str) -> None:
    gradient = {"w": torch.full((3,), value, dtype=torch.float64)}
    with pytest.raises(ValueError, match=rf"natural-gradient direction has norm {norm}"):
        compute_direction(gradient, {"w": torch.ones(3, dtype=torch.float64)})


def test_both_rules_take_what_the_fisher_code_gives() -> None:
    """The rules on real terms: a ratio for each parameter, larger where only class 2 looks."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build_model("mlp", (1, 4, 4), 5)
        codes_KCHW = torch.rand(5, 1, 4, 4)
    terms = forget_terms(model, codes_KCHW, CLASSES, FORGET)
    ratio = compute_ratio(terms.forget, terms.retain)
    weights = dict(model.named_parameters())
    assert ratio.values.keys() == weights.keys()
    assert ratio.values["head.bias"].argmax() == 2
    each = code_gradients(model, codes_KCHW[FORGET], CLASSES[FORGET]).squares
    torch.testing.assert_close(terms.forget["head.bias"], each["head.bias"])
