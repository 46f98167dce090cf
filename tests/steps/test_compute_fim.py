"""When the kept total stands in for the retained codes, and what it is worth."""

from pathlib import Path

import pytest
import torch
from mlflow_store import CLASSES, save_tiny, tiny_model

from expunge.core.fisher import code_losses
from expunge.errors import UserError
from expunge.formats.fisher import FISHER, load_fisher, load_forget_terms, save_fisher
from expunge.formats.model import load_model
from expunge.steps.compute_fim import compute_fim

CPU = torch.device("cpu")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Save an untrained model, in which no code's gradient is so large that others lose digits."""
    return save_tiny(tmp_path / "model", tiny_model())


def test_the_total_is_the_sum_of_the_codes_squared_gradients(model: Path) -> None:
    assert compute_fim(model, model) == {"classes": [0, 1, 2, 3], "gradients": CLASSES}
    stored = load_model(model)
    parameters = dict(stored.module.named_parameters())
    total, provenance = load_fisher(model)
    assert total.keys() == parameters.keys()
    assert set(provenance) == {"torch", "device", "dtype", "chunk"}
    for name, parameter in parameters.items():
        squares = torch.zeros_like(parameter, dtype=torch.float64)
        for row in range(CLASSES):
            code_1CHW, class_1 = (
                part[row : row + 1] for part in (stored.codes.images_KCHW, stored.codes.classes_K)
            )
            loss = code_losses(stored.module(code_1CHW), class_1).sum()
            squares += torch.autograd.grad(loss, parameter)[0].double() ** 2
        torch.testing.assert_close(total[name].cpu(), squares, rtol=1e-4, atol=1e-12)


def test_a_total_of_the_same_provenance_saves_the_retained_codes_gradients(
    model: Path, tmp_path: Path
) -> None:
    bare = compute_fim(model, tmp_path / "direct", classes=[1, 3])
    assert bare["retain_computed_directly"]
    assert bare["gradients"] == CLASSES
    compute_fim(model, model)
    saved = compute_fim(model, tmp_path / "saved", classes=[3, 1])
    assert saved == {
        "classes": [1, 3],
        "gradients": 2,
        "retain_computed_directly": False,
        "elements_without_digits": 0,
    }
    first, second = (load_forget_terms(tmp_path / part, CPU) for part in ("direct", "saved"))
    for name, value in first.retain.items():
        # what is left of total - part after a cancellation of up to CANCELLATION
        torch.testing.assert_close(second.retain[name], value, rtol=1e-6, atol=1e-16)
        assert torch.equal(second.forget[name], first.forget[name])
        assert torch.equal(second.gradient[name], first.gradient[name])


@pytest.mark.parametrize("key", ["torch", "device", "dtype", "chunk"])
def test_a_total_of_another_provenance_is_not_read(model: Path, tmp_path: Path, key: str) -> None:
    compute_fim(model, model)
    total, provenance = load_fisher(model)
    wrong = {name: 100 * value for name, value in total.items()}
    save_fisher(model, wrong, provenance | {key: "another"})
    report = compute_fim(model, tmp_path / "terms", classes=[0])
    assert report["retain_computed_directly"]
    (model / FISHER).unlink()
    compute_fim(model, tmp_path / "bare", classes=[0])
    read, bare = (load_forget_terms(tmp_path / part, CPU) for part in ("terms", "bare"))
    assert all(torch.equal(read.retain[name], value) for name, value in bare.retain.items())


def test_elements_without_digits_are_counted_and_computed_directly(
    model: Path, tmp_path: Path
) -> None:
    """A total that holds the forgotten class alone at one element leaves nothing to subtract."""
    compute_fim(model, model)
    compute_fim(model, tmp_path / "terms", classes=[0])
    forget = load_forget_terms(tmp_path / "terms", CPU).forget
    total, provenance = load_fisher(model)
    total["head.bias"][2] = forget["head.bias"][2]
    save_fisher(model, total, provenance)
    report = compute_fim(model, tmp_path / "again", classes=[0])
    assert report["elements_without_digits"] == 1
    assert report["retain_computed_directly"]
    assert report["gradients"] == CLASSES
    assert load_forget_terms(tmp_path / "again", CPU).lost == 1


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([3], r"classes \[3\] have no code in this model; it has codes of \[0, 1, 2\]"),
        ([0, 9], r"classes \[9\] have no code in this model; it has codes of \[0, 1, 2\]"),
        ([2, 1, 0], "all classes are to be forgotten; at least one has to remain"),
    ],
)
def test_classes_that_cannot_go(tmp_path: Path, classes: list[int], message: str) -> None:
    model = save_tiny(tmp_path / "model", tiny_model(forgotten=(3,)))
    with pytest.raises(UserError, match=message):
        compute_fim(model, tmp_path / "terms", classes=classes)
    assert not (tmp_path / "terms").exists()
