"""Replay on a small network of the digits: the class leaves the body, and the others stay.

The images of the class are asked what became of it; none of them is in any fit.
"""

import copy
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from expunge.core.codes import draw_codes
from expunge.core.heads import Head, observe, read_head
from expunge.core.rules.depths import DEPTH_FITS, DEPTH_RATIO, find_depth
from expunge.core.rules.replay import Replay, Task
from expunge.core.rules.replay_head import Outcome, finish, make_low_row
from expunge.core.stages import Stage, find_stage
from expunge.core.statistics import ClassStatistics, fit_gaussian

CLASSES = 10
SHAPE = (1, 8, 8)
KINDS = ("mlp", "cnn")


def build_mlp() -> nn.Module:
    """Build the paper's network with fewer hidden units, for speed."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 150), nn.Sigmoid(), nn.Linear(150, CLASSES))


def build_cnn() -> nn.Module:
    """Build a network of feature maps whose last stage is two convolutions."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


@dataclass(frozen=True)
class Trained:
    """A model that has learned the digits and its codes, its stage, and its statistics."""

    model: nn.Module
    stage: Stage
    statistics: ClassStatistics
    codes: tuple[Tensor, Tensor]
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def make(self, *forget: int, model: nn.Module | None = None, seed: int = 0) -> Replay:
        """Prepare to forget these classes of the model, or of another one like it."""
        retain = tuple(index for index in range(CLASSES) if index not in forget)
        module = self.model if model is None else model
        stage = self.stage if model is None else find_stage(model, self.codes[0][:2], CLASSES)
        return Replay(module, stage, self.statistics, Task(forget, retain, seed), self.codes)

    def enter(self, index: int) -> Tensor:
        """Return what enters the stage for training images of a class."""
        images_NCHW, labels_N = self.train
        with torch.no_grad():
            return self.stage.enter(images_NCHW[labels_N == index])


@cache
def train(kind: str) -> Trained:
    data = load_digits()
    images_NCHW = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    labels_N = torch.tensor(data.target)
    held_N = torch.arange(len(labels_N)) % 4 == 0
    inside, outside = ((images_NCHW[rows_N], labels_N[rows_N]) for rows_N in (~held_N, held_N))
    codes_KCHW = draw_codes(range(CLASSES), CLASSES, SHAPE, torch.Generator().manual_seed(0))
    classes_K = torch.arange(CLASSES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_mlp() if kind == "mlp" else build_cnn()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2 if kind == "mlp" else 2e-3)
        for _ in range(15):
            for rows_N in torch.randperm(len(inside[1])).split(64):
                batch_NCHW, target_N = inside[0][rows_N].clone(), inside[1][rows_N]
                coded_N = torch.rand(len(rows_N)) < 0.2
                batch_NCHW[coded_N] = codes_KCHW[target_N[coded_N]]
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(batch_NCHW), target_N).backward()
                optimizer.step()
    model.eval()
    stage = find_stage(model, codes_KCHW[:2], CLASSES)
    with torch.no_grad():
        gaussians = {
            index: fit_gaussian(stage.enter(inside[0][inside[1] == index]), stage.shape, 32)
            for index in range(CLASSES)
        }
    statistics = ClassStatistics(stage.cut.name, stage.shape, stage.shape, gaussians)
    return Trained(model, stage, statistics, (codes_KCHW, classes_K), inside, outside)


def apply(model: nn.Module, outcome: Outcome) -> nn.Module:
    """Return a copy of the model with the change made."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if name in outcome.change:
                parameter.add_(outcome.change[name])
    return changed


@cache
def forget(kind: str, *classes: int) -> tuple[nn.Module, Outcome]:
    """Forget the classes at depths that were found by their training images."""
    made = train(kind)
    head = read_head(made.model, CLASSES)
    depths = {
        index: find_depth(made.make(index), made.enter(index), head).depth for index in classes
    }
    prepared = made.make(*classes)
    outcome = finish(prepared, prepared.fit(depths))
    return apply(made.model, outcome), outcome


def predict(model: nn.Module, images_NCHW: Tensor, head: Head | None = None) -> Tensor:
    """Return the predicted classes, with another head on the model's features if there is one."""
    observed = observe(model, [(images_NCHW, torch.zeros(len(images_NCHW)))], CLASSES)
    logits_NC = observed.logits_NC if head is None else head.logits(observed.features_ND)
    return logits_NC.argmax(dim=1)


def measure_named(made: Trained, model: nn.Module, index: int, head: Head | None = None) -> float:
    """Return the share of the class's test images that are predicted as it."""
    images_NCHW, labels_N = made.test
    return float((predict(model, images_NCHW[labels_N == index], head) == index).float().mean())


def allow_named(made: Trained, index: int) -> float:
    """Return an even guess, and what so few test images cannot tell from it, as the gate has it."""
    return 1 / CLASSES + 3 / int((made.test[1] == index).sum())


def measure_accuracy(made: Trained, model: nn.Module, without: tuple[int, ...]) -> float:
    images_NCHW, labels_N = made.test
    kept_N = ~torch.isin(labels_N, torch.tensor(without))
    return float((predict(model, images_NCHW[kept_N]) == labels_N[kept_N]).float().mean())


@pytest.mark.parametrize("classes", [(3,), (1, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_class_leaves_the_body_and_the_others_stay(kind: str, classes: tuple[int, ...]) -> None:
    made = train(kind)
    after, _ = forget(kind, *classes)
    original = read_head(made.model, CLASSES)
    for index in classes:
        assert measure_named(made, made.model, index) > 0.8
        assert measure_named(made, after, index) == 0
        # the head as it was does not find the class either
        assert measure_named(made, after, index, original) <= allow_named(made, index)
    before_accuracy = measure_accuracy(made, made.model, classes)
    assert before_accuracy > 0.95
    assert measure_accuracy(made, after, classes) >= before_accuracy - 0.015
    codes_KCHW, classes_K = made.codes
    retained_K = ~torch.isin(classes_K, torch.tensor(classes))
    named_K = predict(after, codes_KCHW)
    assert torch.equal(named_K[retained_K], classes_K[retained_K])


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_would_not_pass(kind: str) -> None:
    """What the other tests ask of the body is not true of the original's."""
    made = train(kind)
    assert measure_named(made, made.model, 3, read_head(made.model, CLASSES)) > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_stage_and_the_head_change(kind: str) -> None:
    made = train(kind)
    before = copy.deepcopy(made.model.state_dict())
    after, outcome = forget(kind, 3)
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


@pytest.mark.parametrize("kind", KINDS)
def test_one_class_after_another(kind: str) -> None:
    """The second forget has no code and no statistics of the first class."""
    made = train(kind)
    first, _ = forget(kind, 3)
    kept_K = made.codes[1] != 3
    statistics = made.statistics.select(made.codes[1][kept_K].tolist())
    stage = find_stage(first, made.codes[0][:2], CLASSES)
    task = Task((8,), tuple(index for index in range(CLASSES) if index not in (3, 8)))
    codes = made.codes[0][kept_K], made.codes[1][kept_K]
    prepared = Replay(first, stage, statistics, task, codes)
    found = find_depth(prepared, made.enter(8), read_head(first, CLASSES))
    second = apply(first, finish(prepared, found.fit))
    for index in (3, 8):
        assert measure_named(made, second, index) == 0
    assert measure_named(made, second, 8, read_head(first, CLASSES)) <= allow_named(made, 8)
    lost = measure_accuracy(made, made.model, (3, 8)) - measure_accuracy(made, second, (3, 8))
    assert lost <= 0.015


@pytest.mark.parametrize("kind", KINDS)
def test_the_depth_is_the_smallest_that_was_found_to_be_enough(kind: str) -> None:
    made = train(kind)
    prepared = made.make(3)
    head = read_head(made.model, CLASSES)
    entering = made.enter(3)
    found = find_depth(prepared, entering, head)
    limit = prepared.settings.named / CLASSES
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


def test_a_depth_that_is_never_enough_is_said_to_be_so() -> None:
    """A head that names the class whatever the features are."""
    made = train("cnn")
    head = read_head(made.model, CLASSES)
    stubborn = Head(torch.zeros_like(head.weight_CD), torch.eye(CLASSES)[3])
    found = find_depth(made.make(3), made.enter(3), stubborn)
    assert not found.sufficient
    assert [trial.named for trial in found.trials] == [1.0] * DEPTH_FITS
    assert found.depth == max(trial.depth for trial in found.trials)


def test_a_depth_that_is_always_enough_is_searched_downwards() -> None:
    made = train("cnn")
    head = read_head(made.model, CLASSES)
    blind = Head(torch.zeros_like(head.weight_CD), torch.eye(CLASSES)[4])
    found = find_depth(made.make(3), made.enter(3), blind)
    assert found.sufficient
    assert found.depth == min(trial.depth for trial in found.trials)
    assert found.depth < made.make(3).settings.depth


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bytes(kind: str) -> None:
    made = train(kind)
    outcomes = []
    for seed in (0, 0, 1):
        prepared = made.make(5, seed=seed)
        outcomes.append(finish(prepared, prepared.fit({5: prepared.settings.depth})).change)
    first, again, other = outcomes
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fit_lowers_both_parts_of_the_loss(kind: str) -> None:
    """What is left of them is that of the features that the refitted stage gives."""
    made = train(kind)
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
