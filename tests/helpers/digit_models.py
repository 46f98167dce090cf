"""Small networks that learned the digits and their codes, with class statistics, and what they say.

The images of a class are asked what became of it; none of them is in any fit.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from expunge.core.codes import draw_codes
from expunge.core.heads import Head, observe, read_head
from expunge.core.rules.replay import Replay, Task
from expunge.core.stages import Stage, find_stage
from expunge.core.statistics import ClassStatistics, fit_gaussian

CLASSES = 10
SHAPE = (1, 8, 8)


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

    def make_task(self, *forget: int, seed: int = 0) -> Task:
        """Return the task of forgetting these classes and no other."""
        retain = tuple(index for index in range(CLASSES) if index not in forget)
        return Task(forget, retain, seed)

    def make(self, *forget: int, seed: int = 0) -> Replay:
        """Prepare to forget these classes of the model."""
        task = self.make_task(*forget, seed=seed)
        return Replay(self.model, self.stage, self.statistics, task, self.codes)

    def leave_out(self, index: int, model: nn.Module) -> "Trained":
        """Return the model that forgot a class, with what is kept of the others."""
        kept_K = self.codes[1] != index
        return replace(
            self,
            model=model,
            stage=find_stage(model, self.codes[0][:2], CLASSES),
            statistics=self.statistics.select(self.codes[1][kept_K].tolist()),
            codes=(self.codes[0][kept_K], self.codes[1][kept_K]),
        )

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


def apply(model: nn.Module, change: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the model with the change made."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if name in change:
                parameter.add_(change[name])
    return changed


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


def check_forgotten(
    made: Trained, after: nn.Module, classes: tuple[int, ...], *, may_lose: float
) -> None:
    """Check that the classes left the body, and that the others and their codes stayed.

    `may_lose` is how much accuracy on the others it may cost, a fraction.
    """
    original = read_head(made.model, CLASSES)
    for index in classes:
        assert measure_named(made, made.model, index) > 0.8
        assert measure_named(made, made.model, index, original) > 0.8
        assert measure_named(made, after, index) == 0
        # the head as it was does not find the class either
        assert measure_named(made, after, index, original) <= allow_named(made, index)
    before_accuracy = measure_accuracy(made, made.model, classes)
    assert before_accuracy > 0.95
    assert measure_accuracy(made, after, classes) >= before_accuracy - may_lose
    codes_KCHW, classes_K = made.codes
    retained_K = ~torch.isin(classes_K, torch.tensor(classes))
    assert torch.equal(predict(after, codes_KCHW)[retained_K], classes_K[retained_K])
