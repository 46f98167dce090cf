"""Replay on a small MLP of the digits: its stage is trained anew and never saw the class."""

import copy
from functools import cache

import pytest
import torch
from digit_models import (
    CLASSES,
    SHAPE,
    Trained,
    allow_named,
    apply,
    check_forgotten,
    measure_accuracy,
    measure_named,
    train,
)
from torch import nn

from expunge.core.heads import read_head
from expunge.core.rules import anew
from expunge.core.rules.anew import train_anew
from expunge.core.rules.paths import Change
from expunge.core.rules.replay_head import compute_change
from expunge.core.stages import find_stage


def change(made: Trained, *forget: int, seed: int = 0) -> Change:
    retain = tuple(index for index in made.statistics.gaussians if index not in forget)
    task = anew.Task(forget, retain, seed)
    found = train_anew(made.model, made.stage, made.statistics, task, made.codes)
    return compute_change(made.model, found.parameters, found.head)


@cache
def forget(*classes: int) -> nn.Module:
    made = train("mlp")
    return apply(made.model, change(made, *classes))


@pytest.mark.parametrize("classes", [(3,), (1, 8)])
def test_the_class_leaves_the_body_and_the_others_stay(classes: tuple[int, ...]) -> None:
    check_forgotten(train("mlp"), forget(*classes), classes, may_lose=0.02)


def test_nothing_that_it_learns_from_is_of_the_class() -> None:
    """Another class, code or name in the place of class 3 gives the same weights, but for its row.

    What the stage learns from are the model's answers among the retained classes.
    """
    made = train("mlp")
    other = copy.deepcopy(made.model)
    with torch.no_grad():
        head = [module for module in other.modules() if isinstance(module, nn.Linear)][-1]
        head.weight[3], head.bias[3] = torch.randn(head.in_features), 7.0
    codes_KCHW = made.codes[0].clone()
    codes_KCHW[3] = torch.rand(SHAPE)
    stage = find_stage(other, codes_KCHW[:2], CLASSES)
    task = made.make_task(3)
    statistics = made.statistics.select(task.retain)
    first = train_anew(made.model, made.stage, made.statistics, task, made.codes)
    second = train_anew(other, stage, statistics, task, (codes_KCHW, made.codes[1]))
    for name, value in first.parameters.items():
        assert torch.equal(value, second.parameters[name])
    assert torch.equal(first.head.weight_CD, second.head.weight_CD)
    assert torch.equal(first.head.bias_C, second.head.bias_C)


def test_the_model_and_its_buffers_stay_as_they_were() -> None:
    made = train("mlp")
    before = copy.deepcopy(made.model.state_dict())
    forget(3)
    assert all(torch.equal(before[n], v) for n, v in made.model.state_dict().items())


def test_one_class_after_another() -> None:
    """The second forget has no code and no statistics of the first class."""
    made = train("mlp")
    first = forget(3)
    second = apply(first, change(made.leave_out(3, first), 8))
    for index in (3, 8):
        assert measure_named(made, second, index) == 0
    assert measure_named(made, second, 8, read_head(first, CLASSES)) <= allow_named(made, 8)
    lost = measure_accuracy(made, made.model, (3, 8)) - measure_accuracy(made, second, (3, 8))
    assert lost <= 0.03


def test_the_same_seed_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anew, "STEPS", 20)
    made = train("mlp")
    first, again, other = (change(made, 5, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_norms_keep_their_weights_and_a_head_without_a_bias_gets_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(anew, "STEPS", 20)
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(30)
    made = train("mlp")
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 30), norm, nn.ReLU(), nn.Linear(30, CLASSES, bias=False)
    ).eval()
    stage = find_stage(model, made.codes[0][:2], CLASSES)
    found = train_anew(model, stage, made.statistics, made.make_task(3), made.codes)
    made_change = compute_change(model, found.parameters, found.head)
    assert not made_change["2.weight"].any()
    assert not made_change["2.bias"].any()
    assert made_change["1.weight"].any()
    assert "4.bias" not in made_change
    assert not found.head.bias_C.any()


def test_a_model_that_answers_with_no_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anew, "STEPS", 2)
    made = train("mlp")
    broken = copy.deepcopy(made.model)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    stage = find_stage(broken, made.codes[0][:2], CLASSES)
    with pytest.raises(ValueError, match="gives values that are no numbers"):
        train_anew(broken, stage, made.statistics, made.make_task(3), made.codes)


def test_a_mixture_is_nearer_to_its_first_draw() -> None:
    pool = torch.eye(4)
    mixed = anew._mix(pool, 500, torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(500))
    largest = mixed.max(dim=1).values
    assert float(largest.min()) >= 0.5
    assert float(largest.min()) < 0.6
