"""Replay: refit the last stage so that a class's features become those of the classes it resembles.

So it is where feature maps or tokens enter the stage; where vectors do, it is trained anew
(`rules.anew`). The model keeps a Gaussian of what enters its last stage for each class
(`core.statistics`). To forget, the stage g is refitted for seconds on draws h from these Gaussians,
and no image is needed.
With F the forgotten and R the retained classes, f0 = g(h) as it was, mu_k the mean of f0 over the
draws of class k and S the mean over R of the covariance of f0 within a class:

    target of a draw of c in F:  T = f0 + a_c (sum over k in R of p_k mu_k - mu_c)
    minimise  mean over F of |g(h) - T|_P^2 + mean over R of |g(h) - f0|_P^2 + LAMBDA / 2 |V|^2
    |v|_P^2 = v' P v / D,  P = (S + 0.1 mean(diag S) I)^-1

p says which retained classes a draw resembles, and so where images of the class fall afterwards.
V are the whitened coordinates of the stage's weights (`rules.whitening`), and the optimiser is
L-BFGS. LayerNorms, gammas and running statistics stay. Then the head is rebuilt
(`rules.replay_head`).

What enters the stage does not change. So the statistics of the retained classes hold afterwards as
they are, and another class can be forgotten with them.

a_c, the depth, differs by class. It is found where images of the class are (`rules.depths`) and
kept as a number. Too small leaves the class where it was; too large makes a new cluster of it on
the other side. So it is the smallest at which the original's head no longer names the class.

Shapes: N draws, E numbers that enter the stage, D features, C classes, R retained classes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from expunge.core.heads import Head, read_head
from expunge.core.rules.objective import CHUNK, Objective, minimise
from expunge.core.rules.whitening import WIDEST, damp, whiten_stage
from expunge.core.stages import Family, Stage, name_family
from expunge.core.statistics import ClassStatistics

NAME = "replay"
FORGET_DRAWS, RETAIN_DRAWS = 512, 100  # of each class
MOMENT_DRAWS = 500  # of each class
CODE_DRAWS = 10  # how often a retained code stands among the draws
WHITENING_DRAWS = 40  # of each retained class
MOST_RETAINED = 2000  # draws of all retained classes together that a fit goes through
FORWARD_PASSES = 5  # so many times as many where they pass but once, and not at each evaluation
PENALTY = 0.1  # of P, in mean variances of a feature
FIRST_STEP = 0.1  # see `fit`; at 1 the line search met values that are no numbers


@dataclass(frozen=True)
class Settings:
    """What differs by what enters the stage. Set on CIFAR-10 (ResNet-20), seed 0.

    `discriminants` takes p from linear discriminants of what enters, instead of from the head's
    logits of f0. `depth` is taken where a class's own is not known, and a search starts there.
    """

    discriminants: bool
    depth: float


SETTINGS: Mapping[Family, Settings] = {
    "maps": Settings(discriminants=False, depth=1.5),
    "tokens": Settings(discriminants=True, depth=0.9),
}


@dataclass(frozen=True)
class Task:
    """What is forgotten of a model, and what stays. `seed` is that of all draws."""

    forget: tuple[int, ...]
    retain: tuple[int, ...]
    seed: int = 0


@dataclass(frozen=True)
class Fit:
    """A refitted stage: its parameters by name, and what is left of the two parts of the loss."""

    parameters: dict[str, Tensor]
    forget_loss: float
    retain_loss: float
    evaluations: int


class Replay:
    """Draws, targets and coordinates of one task, for fits at several depths.

    The model has to be in eval mode and is not changed. `codes` are the mnemonic codes of the
    retained classes and their class indices: what they give has to stay as well.
    """

    def __init__(
        self,
        model: nn.Module,
        stage: Stage,
        statistics: ClassStatistics,
        task: Task,
        codes: tuple[Tensor, Tensor],
    ) -> None:
        self.model, self.stage, self.statistics, self.task = model, stage, statistics, task
        # the head's rows of all classes, forgotten ones too
        classes = max((*task.forget, *task.retain)) + 1
        self.weights = {n: p.detach() for n, p in stage.upper.named_parameters()}
        self.device = next(iter(self.weights.values())).device
        family = name_family(stage)
        self.settings, self.mixed = SETTINGS[family], family == "maps"
        self.head = read_whole_head(model, classes)
        generator = torch.Generator().manual_seed(task.seed)
        each = self.count_draws(RETAIN_DRAWS)
        kept_K = torch.isin(codes[1], torch.tensor(task.retain, device=codes[1].device))
        with torch.no_grad():
            self.entering_codes = stage.enter(codes[0][kept_K])
        repeated = [self.entering_codes] * CODE_DRAWS
        self.drawn = torch.cat(
            [self.draw(index, FORGET_DRAWS, generator) for index in task.forget]
            + [self.draw(index, each, generator) for index in task.retain]
            + repeated
        )
        counts = [FORGET_DRAWS] * len(task.forget) + [each] * len(task.retain)
        self.labels_N = torch.tensor([*task.forget, *task.retain]).repeat_interleave(
            torch.tensor(counts)
        )
        coded_K = codes[1][kept_K].repeat(CODE_DRAWS).to(self.device)
        self.labels_N = torch.cat([self.labels_N.to(self.device), coded_K])
        self.before_ND = self.compute_features(self.weights, self.drawn)
        self.means, self.covariance_DD = self._measure_moments()
        self.precision_DD = torch.linalg.inv(damp(self.covariance_DD, PENALTY)).float()
        generator = torch.Generator().manual_seed(task.seed + 21)
        few = self.count_draws(WHITENING_DRAWS, least=1)
        entering = torch.cat(
            [self.draw(index, few, generator) for index in task.retain] + [self.entering_codes]
        )
        self.space = whiten_stage(stage, entering, self.covariance_DD, generator)
        self.moves_ND = self._compute_moves()

    def count_draws(self, wanted: int, *, passes: int = 1, least: int = 2) -> int:
        """Return how many draws of each retained class there are: fewer of very many classes.

        All of them together are `MOST_RETAINED` times `passes` at most, but `least` of each.
        """
        return max(least, min(wanted, passes * MOST_RETAINED // len(self.task.retain)))

    def draw(self, index: int, count: int, generator: torch.Generator) -> Tensor:
        """Draw what enters the stage for a class, in the memory layout of the model."""
        drawn = self.statistics.draw(index, count, generator)
        return drawn.contiguous(memory_format=torch.channels_last) if drawn.dim() == 4 else drawn

    def compute_features(self, parameters: Mapping[str, Tensor], entering: Tensor) -> Tensor:
        """Return the features_ND of the stage with these parameters."""
        with torch.no_grad():
            return torch.cat([self.run(parameters, part) for part in torch.split(entering, CHUNK)])

    def run(self, parameters: Mapping[str, Tensor], entering: Tensor) -> Tensor:
        """Return the features_ND of one chunk, with a graph to go back through."""
        # a small stage of matrices is faster in float32, and finer
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            features_ND: Tensor = functional_call(self.stage.upper, dict(parameters), (entering,))
        return features_ND.float()

    def _measure_moments(self) -> tuple[dict[int, Tensor], Tensor]:
        """Return the classes' mean features, and the retained ones' mean covariance, D x D.

        From draws of their own: the fit's are too few for a covariance of a thousand features.
        """
        generator = torch.Generator().manual_seed(self.task.seed + 3)
        each = self.count_draws(MOMENT_DRAWS, passes=FORWARD_PASSES)
        means: dict[int, Tensor] = {}
        total = torch.zeros(())
        for index in (*self.task.forget, *self.task.retain):
            features_ND = self.compute_features(self.weights, self.draw(index, each, generator))
            means[index] = features_ND.mean(dim=0)
            if index in self.task.retain:
                centred_ND = features_ND - means[index]
                total = total + centred_ND.T @ centred_ND / (each - 1)
        return means, total / len(self.task.retain)

    def _compute_moves(self) -> Tensor:
        """Return what a draw of a forgotten class moves by at depth 1; 0 for the others."""
        forgotten_N, moves_ND = self._is_forgotten(), torch.zeros_like(self.before_ND)
        before_FD = self.before_ND[forgotten_N]
        if self.settings.discriminants and self.drawn[0].numel() <= WIDEST:
            resembled_FR = self._discriminate(self.drawn[forgotten_N])
        else:
            resembled_FR = self.head.logits(before_FD)[:, list(self.task.retain)]
        means_RD = torch.stack([self.means[index] for index in self.task.retain])
        own_FD = torch.stack([self.means[int(index)] for index in self.labels_N[forgotten_N]])
        moves_ND[forgotten_N] = resembled_FR.softmax(dim=1) @ means_RD - own_FD
        return moves_ND

    def _discriminate(self, entering: Tensor) -> Tensor:
        """Return the retained classes' linear discriminants, N x R, of what enters the stage.

        Their shared covariance is shrunk by a tenth towards its mean variance.
        """
        generator = torch.Generator().manual_seed(self.task.seed + 1)
        each = self.count_draws(MOMENT_DRAWS, passes=FORWARD_PASSES)
        rows = [self.draw(index, each, generator).flatten(1) for index in self.task.retain]
        means_RE = torch.stack([own_NE.mean(dim=0) for own_NE in rows])
        centred_NE = torch.cat([own - mean for own, mean in zip(rows, means_RE, strict=True)])
        covariance_EE = (centred_NE.T @ centred_NE).double() / len(centred_NE)
        shrunk_EE = damp(0.9 * covariance_EE, 0.1 / 0.9)
        weights_RE: Tensor = torch.linalg.solve(shrunk_EE, means_RE.double().T).T.float()
        return entering.flatten(1) @ weights_RE.T - 0.5 * (weights_RE * means_RE).sum(dim=1)

    def _is_forgotten(self) -> Tensor:
        forget = torch.tensor(self.task.forget, device=self.labels_N.device)
        return torch.isin(self.labels_N, forget)

    def fit(self, depths: Mapping[int, float]) -> Fit:
        """Refit the stage so that each forgotten class moves by its depth."""
        forgotten_N = self._is_forgotten()
        depth_N = torch.zeros(len(self.labels_N), device=self.device)
        for index, depth in depths.items():
            depth_N[self.labels_N == index] = depth
        targets_ND = self.before_ND + depth_N[:, None] * self.moves_ND
        # the mean over each of the two parts
        weights_N = (
            torch.where(forgotten_N, 1 / forgotten_N.sum(), 1 / (~forgotten_N).sum())
            / targets_ND.shape[1]
        )
        objective = Objective(
            run=self.run,
            move=lambda coordinates: self.space.move(coordinates, self.weights),
            drawn=self.drawn,
            targets_ND=targets_ND,
            precision_DD=self.precision_DD,
            weights_N=weights_N,
            forgotten_N=forgotten_N,
        )
        origin = self.space.make_origin()
        objective.evaluate(origin)
        # L-BFGS begins with a step of length 1 in the sum of absolute values, far too short in
        # millions of coordinates. In these units it is FIRST_STEP D times the gradient: about what
        # a whitened loss, whose curvature is 2 / D, asks for.
        gradients = [value.grad for value in origin.values() if value.grad is not None]
        slope = sum(float(gradient.abs().sum()) for gradient in gradients)
        step = FIRST_STEP * targets_ND.shape[1]
        for unit in (step * slope, 0.01 * step * slope):
            found = minimise(objective, origin, max(unit, 1e-12))
            if all(math.isfinite(part) for part in objective.parts):
                break
        else:
            raise ValueError(f"the refitted stage gives values that are no numbers at {depths}")
        with torch.no_grad():
            moved = self.space.move(found, self.weights)
        return Fit(moved, *objective.parts, evaluations=objective.count)


def read_whole_head(model: nn.Module, least: int) -> Head:
    """Return the head's weights, whatever its number of classes is.

    Raises:
        ValueError: it has fewer than `least`.
    """
    linear = _find_last_linear(model)
    if linear.out_features < least:
        raise ValueError(f"the head has {linear.out_features} outputs; {least} at least")
    return read_head(model, linear.out_features)


def has_bias(model: nn.Module) -> bool:
    """Return whether the head has a bias."""
    return _find_last_linear(model).bias is not None


def _find_last_linear(model: nn.Module) -> nn.Linear:
    return [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
