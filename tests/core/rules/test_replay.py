"""Replay on a small network of the digits: the class leaves the body, and the others stay."""

import copy
from functools import cache

import pytest
import torch
from digit_models import (
    CLASSES,
    allow_named,
    apply,
    check_forgotten,
    measure_accuracy,
    measure_named,
    train,
)
from torch import Tensor, nn

from expunge.core.heads import Head, read_head
from expunge.core.rules import objective
from expunge.core.rules.depths import DEPTH_FITS, DEPTH_RATIO, DepthSearch, find_depth
from expunge.core.rules.replay import Replay, Task
from expunge.core.rules.replay_head import Outcome, finish, make_low_row
from expunge.core.stages import find_stage
from expunge.forgetting.by_replay import JOINT_RATIO


@cache
def search(index: int) -> DepthSearch:
    """Find the depth of a class by its training images."""
    made = train("cnn")
    return find_depth(made.make(index), made.enter(index), read_head(made.model, CLASSES))


@cache
def forget(*classes: int) -> tuple[nn.Module, Outcome]:
    """Forget the classes at the depths that were found for each; several need somewhat more."""
    made = train("cnn")
    more = JOINT_RATIO if len(classes) > 1 else 1.0
    depths = {index: search(index).depth * more for index in classes}
    prepared = made.make(*classes)
    outcome = finish(prepared, prepared.fit(depths))
    return apply(made.model, outcome.change), outcome


@pytest.fixture
def _short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make fits too short to be good, where it does not matter how good they are."""
    monkeypatch.setattr(objective, "EVALUATIONS", 3)


@pytest.mark.parametrize("classes", [(3,), (3, 8)])
def test_the_class_leaves_the_body_and_the_others_stay(classes: tuple[int, ...]) -> None:
    check_forgotten(train("cnn"), forget(*classes)[0], classes, may_lose=0.015)


def test_a_mask_would_not_pass() -> None:
    """What the other tests ask of the body is not true of the original's."""
    made = train("cnn")
    assert measure_named(made, made.model, 3, read_head(made.model, CLASSES)) > 0.8


def test_only_the_stage_and_the_head_change() -> None:
    made = train("cnn")
    before = copy.deepcopy(made.model.state_dict())
    after, outcome = forget(3)
    assert all(torch.equal(before[n], v) for n, v in made.model.state_dict().items())
    below = {name for name, _ in made.stage.lower.named_parameters()}
    assert not below & set(outcome.change)
    buffers = {name for name, _ in made.model.named_buffers()}
    assert all(torch.equal(before[name], after.state_dict()[name]) for name in buffers)
    # so the statistics of the others hold as they are
    images_NCHW = made.test[0][:20]
    stage = find_stage(after, images_NCHW[:2], CLASSES)
    with torch.no_grad():
        assert torch.equal(stage.enter(images_NCHW), made.stage.enter(images_NCHW))


def test_one_class_after_another() -> None:
    """The second forget has no code and no statistics of the first class."""
    made = train("cnn")
    first, _ = forget(3)
    left = made.leave_out(3, first)
    task = Task((8,), tuple(index for index in range(CLASSES) if index not in (3, 8)))
    prepared = Replay(first, left.stage, left.statistics, task, left.codes)
    found = find_depth(prepared, made.enter(8), read_head(first, CLASSES))
    second = apply(first, finish(prepared, found.fit).change)
    for index in (3, 8):
        assert measure_named(made, second, index) == 0
    assert measure_named(made, second, 8, read_head(first, CLASSES)) <= allow_named(made, 8)
    lost = measure_accuracy(made, made.model, (3, 8)) - measure_accuracy(made, second, (3, 8))
    assert lost <= 0.015


def test_the_depth_is_the_smallest_that_was_found_to_be_enough() -> None:
    made = train("cnn")
    prepared = made.make(3)
    head = read_head(made.model, CLASSES)
    entering = made.enter(3)
    found = search(3)
    limit = 1 / CLASSES
    shares = {trial.depth: trial.named for trial in found.trials}
    assert found.sufficient
    assert 1 < len(shares) <= DEPTH_FITS
    assert shares[found.depth] <= limit
    smaller = [depth for depth in shares if depth < found.depth]
    if smaller:
        assert shares[max(smaller)] > limit
        assert found.depth / max(smaller) <= DEPTH_RATIO + 1e-6
    # what a trial says is what the fit gives
    features_ND = prepared.compute_features(found.fit.parameters, entering)
    named = float((head.logits(features_ND).argmax(dim=1) == 3).float().mean())
    assert named == shares[found.depth]
    again = prepared.fit({3: found.depth})
    assert all(torch.equal(again.parameters[n], v) for n, v in found.fit.parameters.items())


@pytest.mark.usefixtures("_short_fits")
def test_a_depth_that_is_never_enough_is_said_to_be_so() -> None:
    """A head that names the class whatever the features are."""
    made = train("cnn")
    head = read_head(made.model, CLASSES)
    stubborn = Head(torch.zeros_like(head.weight_CD), torch.eye(CLASSES)[3])
    found = find_depth(made.make(3), made.enter(3), stubborn)
    assert not found.sufficient
    assert [trial.named for trial in found.trials] == [1.0] * DEPTH_FITS
    assert found.depth == max(trial.depth for trial in found.trials)


@pytest.mark.usefixtures("_short_fits")
def test_a_depth_that_is_always_enough_is_searched_downwards() -> None:
    made = train("cnn")
    head = read_head(made.model, CLASSES)
    blind = Head(torch.zeros_like(head.weight_CD), torch.eye(CLASSES)[4])
    found = find_depth(made.make(3), made.enter(3), blind)
    assert found.sufficient
    assert found.depth == min(trial.depth for trial in found.trials)
    assert found.depth < made.make(3).settings.depth


@pytest.mark.usefixtures("_short_fits")
def test_the_same_seed_gives_the_same_bytes() -> None:
    made = train("cnn")
    outcomes = []
    for seed in (0, 0, 1):
        prepared = made.make(5, seed=seed)
        outcomes.append(finish(prepared, prepared.fit({5: prepared.settings.depth})).change)
    first, again, other = outcomes
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_fit_lowers_both_parts_of_the_loss() -> None:
    """What is left of them is that of the features that the refitted stage gives."""
    made = train("cnn")
    prepared = made.make(3)
    depth = prepared.settings.depth
    fit = prepared.fit({3: depth})
    assert fit.evaluations > 1
    targets_ND = prepared.before_ND + depth * prepared.moves_ND
    forgotten_N = prepared.labels_N == 3

    def measure(features_ND: Tensor) -> tuple[float, float]:
        gap_ND = (features_ND - targets_ND).double()
        size_N = ((gap_ND @ prepared.precision_DD.double()) * gap_ND).sum(dim=1) / gap_ND.shape[1]
        return float(size_N[forgotten_N].mean()), float(size_N[~forgotten_N].mean())

    start = measure(prepared.before_ND)
    assert start[1] == 0
    end = measure(prepared.compute_features(fit.parameters, prepared.drawn))
    assert end[0] < 0.5 * start[0]
    assert end[1] < 0.2 * start[0]


@pytest.mark.usefixtures("_short_fits")
def test_a_depth_beyond_all_numbers_is_named() -> None:
    with pytest.raises(ValueError, match=r"values that are no numbers at \{3: inf\}"):
        train("cnn").make(3).fit({3: float("inf")})


def test_a_retained_draw_has_no_target_but_its_own_features() -> None:
    made = train("cnn")
    prepared = made.make(3)
    retained_N = prepared.labels_N != 3
    assert not prepared.moves_ND[retained_N].any()
    # p over the retained classes by the head's logits, and the means of the classes' features
    logits_NC = prepared.head.logits(prepared.before_ND[~retained_N]).double()
    keep = [index for index in range(CLASSES) if index != 3]
    p_NR = logits_NC[:, keep].softmax(dim=1)
    means_RD = torch.stack([prepared.means[index] for index in keep]).double()
    expected_ND = p_NR @ means_RD - prepared.means[3].double()
    torch.testing.assert_close(
        prepared.moves_ND[~retained_N].double(), expected_ND, rtol=1e-3, atol=1e-3
    )


def test_features_with_a_mean_get_a_row_along_it() -> None:
    features_ND = torch.rand(50, 6, generator=torch.Generator().manual_seed(0)) + 1
    row_D, bias = make_low_row(features_ND, 5.0)
    mean_D = features_ND.mean(dim=0)
    torch.testing.assert_close(row_D, -5 * mean_D / (mean_D @ mean_D))
    assert bias == 0
    assert float((features_ND @ row_D).mean()) == pytest.approx(-5)


def test_features_without_a_mean_get_a_bias() -> None:
    """As behind a LayerNorm, where the mean says little of a feature."""
    features_ND = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    row_D, bias = make_low_row(features_ND, 5.0)
    assert not row_D.any()
    assert bias == -5


def test_a_head_that_is_too_small_is_named() -> None:
    made = train("cnn")
    task = Task((3,), (*range(3), *range(4, 11)))
    with pytest.raises(ValueError, match="the head has 10 outputs; 11 at least"):
        Replay(made.model, made.stage, made.statistics, task, made.codes)
