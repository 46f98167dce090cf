import copy

import pytest
import torch
from torch import Tensor, nn

from expunge.core.fisher import (
    code_gradients,
    code_losses,
    forget_terms,
    subtract,
)
from expunge.models import build_model

CLASSES = torch.arange(6)


def slow_fisher(model: nn.Module, codes: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Sum the squared gradients of -log softmax, one code at a time, as the definition says."""
    model = copy.deepcopy(model).eval()
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for code, label in zip(codes, classes, strict=True):
        model.zero_grad()
        (-torch.log_softmax(model(code[None]), dim=1)[0, label]).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                total[name] += parameter.grad**2
    return total


def make(arch: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build_model(arch, (1, 8, 8), 6).to(dtype)
        for name, buffer in model.named_buffers():  # statistics as a trained BatchNorm has them
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
        return model, torch.rand(6, 1, 8, 8, dtype=dtype)


@pytest.mark.parametrize("arch", ["mlp", "resnet20"])
@pytest.mark.parametrize("chunk", [1, 4])
def test_fisher_equals_the_slow_one(arch: str, chunk: int) -> None:
    model, codes = make(arch)
    fast = code_gradients(model, codes, CLASSES, chunk=chunk)
    slow = slow_fisher(model, codes, CLASSES)
    for name, expected in slow.items():
        torch.testing.assert_close(fast.squares[name], expected, rtol=1e-10, atol=1e-10)
        assert fast.squares[name].dtype == torch.float64


def test_fisher_is_a_sum_of_squares_not_a_square_of_a_sum() -> None:
    model, codes = make("mlp")
    pair = code_gradients(model, codes[:2], CLASSES[:2])
    each = [code_gradients(model, codes[i : i + 1], CLASSES[i : i + 1]) for i in range(2)]
    for name, square in pair.squares.items():
        torch.testing.assert_close(square, each[0].squares[name] + each[1].squares[name])
        torch.testing.assert_close(
            pair.gradient[name], each[0].gradient[name] + each[1].gradient[name]
        )
        assert not torch.allclose(square, pair.gradient[name] ** 2)


def test_fisher_leaves_the_model_as_it_was() -> None:
    model, codes = make("resnet20")
    model.train()
    before = copy.deepcopy(model.state_dict())
    code_gradients(model, codes, CLASSES)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_permuted_classes_give_permuted_gradients() -> None:
    model, codes = make("mlp")
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    renamed = copy.deepcopy(model)
    with torch.no_grad():  # class order[i] of the renamed model is class i of the first
        for name in ("weight", "bias"):
            getattr(renamed.head, name)[order] = getattr(model.head, name)
    first = code_gradients(model, codes, CLASSES).squares
    second = code_gradients(renamed, codes, order).squares
    torch.testing.assert_close(second["hidden.weight"], first["hidden.weight"])
    torch.testing.assert_close(second["head.weight"][order], first["head.weight"])


def test_loss_is_cross_entropy() -> None:
    logits = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    expected = nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(code_losses(logits, labels), expected)


def test_gradient_survives_saturation() -> None:
    """At a margin of 30 p is 1 - 9e-14, which float32 rounds to 1: p - 1 would be exactly 0."""
    label = torch.tensor([0])
    gradients = {}
    for dtype in (torch.float32, torch.float64):
        logits = torch.tensor([[30.0, 0.0]], dtype=dtype, requires_grad=True)
        assert (torch.softmax(logits, 1)[0, 0] == 1) == (dtype == torch.float32)
        (gradients[dtype],) = torch.autograd.grad(code_losses(logits, label).sum(), logits)
    torch.testing.assert_close(
        gradients[torch.float32].double(), gradients[torch.float64], rtol=1e-5, atol=0
    )
    assert gradients[torch.float32][0, 0] < 0


def test_terms_from_the_total_equal_those_computed_directly() -> None:
    model, codes = make("mlp")
    forget = torch.isin(CLASSES, torch.tensor([1, 4]))
    total = code_gradients(model, codes, CLASSES).squares
    cheap = forget_terms(model, codes, CLASSES, forget, total=total)
    direct = forget_terms(model, codes, CLASSES, forget)
    assert (cheap.direct, direct.direct) == (False, True)
    for name in total:
        torch.testing.assert_close(cheap.retain[name], direct.retain[name], rtol=1e-8, atol=0)
        torch.testing.assert_close(cheap.forget[name], direct.forget[name])
        torch.testing.assert_close(
            2 * direct.forget[name] + 4 * direct.retain[name], total[name]
        )  # means, of two codes and of four


def test_cancellation_is_found_and_computed_directly() -> None:
    """Where the total is the forgotten codes' alone, the difference has no digits left."""
    model, codes = make("mlp")
    forget = CLASSES == 0
    total = code_gradients(model, codes, CLASSES).squares
    part = code_gradients(model, codes[forget], CLASSES[forget]).squares
    total["hidden.bias"][:5] = part["hidden.bias"][:5] * (1 + 1e-8)
    _, lost = subtract(total, part)
    assert lost == 5
    terms = forget_terms(model, codes, CLASSES, forget, total=total)
    direct = forget_terms(model, codes, CLASSES, forget)
    assert terms.direct
    assert terms.lost == 5
    assert all(torch.equal(terms.retain[name], direct.retain[name]) for name in total)


@pytest.mark.parametrize("classes", [[], [0, 1, 2, 3, 4, 5]])
def test_terms_refuse_to_forget_none_or_all(classes: list[int]) -> None:
    model, codes = make("mlp")
    with pytest.raises(ValueError, match="of 6 codes to forget; some must remain"):
        forget_terms(model, codes, CLASSES, torch.isin(CLASSES, torch.tensor(classes)))


def test_fisher_refuses_a_broken_model_and_missing_codes() -> None:
    model, codes = make("mlp")
    with pytest.raises(ValueError, match="6 codes for 5 classes; one code each"):
        code_gradients(model, codes, CLASSES[:5])
    with torch.no_grad():
        next(model.parameters())[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"Fisher information of .* is not finite"):
        code_gradients(model, codes, CLASSES)
