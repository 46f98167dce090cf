"""The choice of rule, sign and strength, on a model trained here with codes for a moment."""

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from code_mixing import mix_codes
from torch import Tensor, nn
from torch.func import functional_call

from expunge.core.codes import draw_codes
from expunge.core.fisher import code_losses, forget_terms
from expunge.core.rules import load_rule
from expunge.core.rules.calibrate import Choice, calibrate
from expunge.core.rules.meter import blend_codes
from expunge.core.rules.natural import compute_direction
from expunge.core.rules.paper import LAMBDA2, compute_change, compute_ratio, compute_shape
from expunge.core.rules.paths import Change
from expunge.errors import UserError
from expunge.models.mlp import MLP

SHAPE, COUNT = (1, 6, 6), 6
CLASSES = torch.arange(COUNT)
BUDGETS = (0.0, 0.005, 0.015, 0.05, 0.2)


class Trained(NamedTuple):
    model: nn.Module
    codes_KCHW: Tensor
    images_NCHW: Tensor
    labels_N: Tensor


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Operations this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained() -> Trained:
    """Six classes, each one random picture with noise; every fifth sample is the class's code."""
    generator = torch.Generator().manual_seed(0)
    codes_KCHW = draw_codes(range(COUNT), COUNT, SHAPE, generator)
    pictures_KCHW = torch.randn(COUNT, *SHAPE, generator=generator)

    def sample(labels_N: Tensor) -> Tensor:
        noise_NCHW = torch.randn(len(labels_N), *SHAPE, generator=generator)
        return pictures_KCHW[labels_N] + 0.7 * noise_NCHW

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MLP(SHAPE, COUNT, hidden=200)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(300):
        labels_N = torch.randint(COUNT, (96,), generator=generator)
        images_NCHW = mix_codes(
            sample(labels_N), labels_N, codes_KCHW, CLASSES, t_mix=0.2, generator=generator
        )
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images_NCHW), labels_N).backward()
        optimizer.step()
    test_N = CLASSES.repeat(50)
    return Trained(model.train(), codes_KCHW, sample(test_N), test_N)


def chosen(trained: Trained, *classes: int, **settings: object) -> Choice:
    forget_K = torch.isin(CLASSES, torch.tensor(classes))
    model, codes_KCHW, *_ = trained
    terms = forget_terms(model, codes_KCHW, CLASSES, forget_K)
    return calibrate(model, codes_KCHW, CLASSES, forget_K, terms=terms, **settings)  # type: ignore[arg-type]


def logits(model: nn.Module, change: Change, images_NCHW: Tensor) -> Tensor:
    changed = {name: p.detach() + change[name] for name, p in model.named_parameters()}
    with torch.no_grad():
        return functional_call(model, changed, (images_NCHW,)).double()  # type: ignore[no-any-return]


def limit(budget: float) -> float:
    return -math.log(1 - budget)


@pytest.mark.parametrize("rule", ["auto", "paper", "natural"])
@pytest.mark.parametrize("classes", [(0,), (5,), (0, 3), (1, 2, 4)])
def test_forgotten_codes_get_wrong_and_retained_stay_right(
    trained: Trained, rule: str, classes: tuple[int, ...]
) -> None:
    choice = chosen(trained, *classes, rule=rule)
    forget_K = torch.isin(CLASSES, torch.tensor(classes))
    logits_KC = logits(trained.model, choice.change, trained.codes_KCHW)
    assert ((logits_KC.argmax(1) == CLASSES) == ~forget_K).all()
    assert choice.sufficient
    trial = choice.trial
    assert (trial.forgotten, trial.retained) == (1, 1)
    losses_K = code_losses(logits_KC, CLASSES)
    assert trial.forget_loss == pytest.approx(float(losses_K[forget_K].min()))
    assert trial.retain_loss == pytest.approx(float(losses_K[~forget_K].mean()))
    assert math.exp(-trial.forget_loss) <= load_rule(trial.rule).sufficient * (1 + 1e-6)
    if rule != "auto":
        assert {made.rule for made in choice.trials} == {rule} == {trial.rule}


@pytest.mark.parametrize(("classes", "budget"), [((0,), 0.015), ((5,), 0.015), ((1, 4), 0.05)])
def test_the_papers_rule_forgets_the_classes_images_and_keeps_the_others(
    trained: Trained, classes: tuple[int, ...], budget: float
) -> None:
    _, _, images_NCHW, labels_N = trained
    change = chosen(trained, *classes, rule="paper", budget=budget).change
    right_N = logits(trained.model, change, images_NCHW).argmax(1) == labels_N
    forget_N = torch.isin(labels_N, torch.tensor(classes))
    assert right_N[forget_N].double().mean() < 0.05
    assert right_N[~forget_N].double().mean() > 0.95


def test_the_change_is_the_rules_at_the_trials_strength(trained: Trained) -> None:
    weights = {name: p.detach() for name, p in trained.model.named_parameters()}
    terms = forget_terms(trained.model, trained.codes_KCHW, CLASSES, CLASSES == 2)
    paper, natural = (chosen(trained, 2, rule=rule) for rule in ("paper", "natural"))
    lambda1, lambda2 = paper.trial.lambdas
    assert lambda1 == paper.trial.strength
    assert lambda2 in LAMBDA2
    ratio = compute_ratio(terms.forget, terms.retain)
    expected = compute_change(
        compute_shape(weights, ratio), ratio, paper.trial.sign, (lambda1, lambda2)
    )
    direction = compute_direction(terms.gradient, terms.retain)
    for name in weights:
        assert torch.equal(paper.change[name], expected[name])
        step_W = natural.trial.strength * direction[name]
        torch.testing.assert_close(natural.change[name].double(), step_W, rtol=1e-6, atol=1e-12)
    assert (natural.trial.sign, natural.trial.lambdas) == (1, ())


@pytest.mark.parametrize("lambdas", [(0.02, 10.0), (3.0, 0.5), (1e-4, 100.0)])
def test_fixed_lambdas_are_the_papers_rule_with_the_better_sign(
    trained: Trained, lambdas: tuple[float, float]
) -> None:
    weights = {name: p.detach() for name, p in trained.model.named_parameters()}
    terms = forget_terms(trained.model, trained.codes_KCHW, CLASSES, CLASSES == 1)
    ratio = compute_ratio(terms.forget, terms.retain)
    standings = {}
    for sign in (-1, 1):
        logits_KC = logits(
            trained.model,
            compute_change(compute_shape(weights, ratio), ratio, sign, lambdas),
            trained.codes_KCHW,
        )
        right_K = (logits_KC.argmax(1) == CLASSES).tolist()
        share = (not right_K[1]) + sum(right_K[i] for i in range(COUNT) if i != 1) / (COUNT - 1)
        standings[sign] = (share, float(code_losses(logits_KC, CLASSES)[1]))
    better = max(standings, key=lambda sign: standings[sign])
    choice = chosen(trained, 1, rule="paper", lambdas=lambdas)
    assert (choice.trial.sign, choice.trial.lambdas) == (better, lambdas)
    assert sorted(made.sign for made in choice.trials) == [-1, 1]
    expected = compute_change(compute_shape(weights, ratio), ratio, better, lambdas)
    assert all(torch.equal(choice.change[name], expected[name]) for name in weights)
    wanted = -math.log(load_rule("paper").sufficient)
    assert choice.sufficient == (standings[better][1] >= wanted)


def test_zero_lambdas_change_nothing_and_are_not_sufficient(trained: Trained) -> None:
    choice = chosen(trained, 1, rule="paper", lambdas=(0.0, 0.0))
    assert not any(part.any() for part in choice.change.values())
    assert (choice.sufficient, choice.trial.forgotten, choice.trial.damage) == (False, 0, 0)


@pytest.mark.parametrize("rule", ["auto", "paper", "natural"])
def test_relabelled_classes_give_the_same_choice_relabelled(trained: Trained, rule: str) -> None:
    order = torch.tensor([3, 1, 5, 0, 2, 4])  # class i is called order[i] by the other model
    model = copy.deepcopy(trained.model)
    codes_KCHW = torch.empty_like(trained.codes_KCHW)
    codes_KCHW[order] = trained.codes_KCHW
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(model.head, name)[order] = getattr(trained.model.head, name)
    first = chosen(trained, 2, rule=rule)
    second = chosen(trained._replace(model=model, codes_KCHW=codes_KCHW), 5, rule=rule)
    assert (first.trial.rule, first.trial.sign) == (second.trial.rule, second.trial.sign)
    for field in ("strength", "forget_loss", "retain_loss", "damage"):
        assert getattr(first.trial, field) == pytest.approx(getattr(second.trial, field), rel=1e-3)
    for name, part in first.change.items():
        other = second.change[name][order] if name.startswith("head") else second.change[name]
        torch.testing.assert_close(other, part, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rule", ["auto", "paper", "natural"])
@pytest.mark.parametrize("forget", [0, 4])
def test_a_larger_budget_never_gives_less_depth(trained: Trained, rule: str, forget: int) -> None:
    """And what is taken is within its budget, or it is the sufficient point and no deeper."""
    choices = [chosen(trained, forget, rule=rule, budget=budget) for budget in BUDGETS]
    depths = [choice.trial.forget_loss for choice in choices]
    assert depths == sorted(depths)
    assert len({choice.trial.rule for choice in choices}) == 1
    for budget, choice in zip(BUDGETS, choices, strict=True):
        if choice.trial.damage > limit(budget):
            wanted = -math.log(load_rule(choice.trial.rule).sufficient)
            # half a per cent of strength, twice, is what the bisection leaves open
            assert wanted <= choice.trial.forget_loss < 1.1 * wanted
    if rule == "paper":
        assert depths[-1] > depths[0] + 1  # the budgets make a difference at all


def test_the_damage_is_the_divergence_among_retained_classes_over_blends(trained: Trained) -> None:
    choice = chosen(trained, 3)
    blends_NCHW = blend_codes(trained.codes_KCHW)
    still = {name: torch.zeros_like(p) for name, p in trained.model.named_parameters()}
    divergences = []
    for blend_CHW in blends_NCHW:
        rows = [
            torch.softmax(logits(trained.model, change, blend_CHW[None])[0][CLASSES != 3], 0)
            for change in (still, choice.change)
        ]
        pairs = zip(rows[0].tolist(), rows[1].tolist(), strict=True)
        divergences.append(sum(p * math.log(p / q) for p, q in pairs))
    assert choice.trial.damage == pytest.approx(sum(divergences) / len(divergences), rel=1e-4)


def test_every_trial_is_recorded(trained: Trained) -> None:
    choice = chosen(trained, 0)
    assert choice.trial in choice.trials
    assert len(set(choice.trials)) == len(choice.trials) > 2
    assert {made.rule for made in choice.trials} == {"paper", "natural"}
    for made in choice.trials:
        assert made.lambdas == () or made.lambdas[0] == made.strength
        assert made.damage >= -1e-9
        assert (made.rule == "paper") == bool(made.lambdas)


def test_equal_inputs_give_equal_choices(trained: Trained) -> None:
    first, second = chosen(trained, 1, 4), chosen(trained, 1, 4)
    assert first.trials == second.trials
    assert first.trial == second.trial
    assert all(torch.equal(second.change[name], part) for name, part in first.change.items())


def test_the_model_is_left_as_it_was(trained: Trained) -> None:
    before = copy.deepcopy(trained.model.state_dict())
    chosen(trained, 0)
    chosen(trained, 0, rule="paper", lambdas=(1.0, 10.0))
    assert all(torch.equal(before[key], value) for key, value in trained.model.state_dict().items())
    assert trained.model.training
    assert all(p.requires_grad and p.grad is not None for p in trained.model.parameters())


class Bounded(nn.Module):
    """Margins of 10 that no value of the only parameter can bring below 8."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.1, -0.2, 0.3, -0.4]))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return 10 * images_NCHW.flatten(1) + torch.tanh(self.bias)


@pytest.mark.parametrize("rule", ["auto", "paper", "natural"])
def test_what_cannot_be_forgotten_is_said_and_not_raised(rule: str) -> None:
    codes_KCHW, classes_K = torch.eye(4).reshape(4, 1, 2, 2), torch.arange(4)
    terms = forget_terms(Bounded(), codes_KCHW, classes_K, classes_K == 1)
    choice = calibrate(Bounded(), codes_KCHW, classes_K, classes_K == 1, terms=terms, rule=rule)
    assert not choice.sufficient
    assert choice.trial in choice.trials
    assert (choice.trial.forgotten, choice.trial.retained) == (0, 1)
    assert choice.change["bias"].isfinite().all()


@pytest.mark.parametrize(
    ("rule", "lambdas"),
    [("best", ()), ("auto", (1e-3, 10.0)), ("natural", (1e-3, 10.0)), ("paper", (1e-3,))],
)
def test_misuse_is_named(trained: Trained, rule: str, lambdas: tuple[float, ...]) -> None:
    expected = "expected auto, paper, natural without any, or paper with 2 lambdas"
    with pytest.raises(ValueError, match=f"rule '{rule}' with lambdas .*; {expected}"):
        chosen(trained, 0, rule=rule, lambdas=lambdas)


@pytest.mark.parametrize(
    ("rule", "lambdas"), [("auto", ()), ("paper", ()), ("natural", ()), ("paper", (1e-3, 10.0))]
)
def test_no_gradient_is_nothing_to_go_by(
    trained: Trained, rule: str, lambdas: tuple[float, ...]
) -> None:
    model, codes_KCHW, *_ = trained
    terms = forget_terms(model, codes_KCHW, CLASSES, CLASSES == 0)
    zeros = {name: torch.zeros_like(value) for name, value in terms.forget.items()}
    terms = dataclasses.replace(terms, forget=zeros, gradient=zeros)
    text = rf"classes \[0\] cannot be forgotten by rule '{rule}': their codes have no gradient"
    with pytest.raises(UserError, match=text):
        calibrate(model, codes_KCHW, CLASSES, CLASSES == 0, terms=terms, rule=rule, lambdas=lambdas)
