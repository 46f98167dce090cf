"""Align: disturb the last stage, then repair it on retained images, with the original as teacher.

Of the layers from the last stage on, each matrix W of weights first becomes

    k W + sqrt(1 - k^2) std(W) e    with e standard normal and k = KEEP

so that what it knows fades and its scale stays ("shrink and perturb": Ash and Adams, "On
Warm-Starting Neural Network Training", NeurIPS 2020). Then a few steps on retained images bring
back what these need, and nothing asks for the forgotten class. With p the original's and q the new
model's probabilities among the retained classes and y an image's class, a step descends the mean
over a batch of

    KL(p | q) - log q_y    in nats

The original as the teacher on retained images is that of SCRUB (Kurmanji et al., "Towards Unbounded
Machine Unlearning", NeurIPS 2023). To break the body before it is repaired on retained images is
COLA's way (Jeon et al., "An Information Theoretic Evaluation Metric for Strong Unlearning",
arXiv:2405.17878), which breaks it by a contrastive loss and not by noise. SCRUB's steps away from
the teacher on images of the class are left out, since no such image may be needed.

What enters the stage stays as it was, and so do the statistics of it. At the end the head's rows of
the forgotten classes become a low logit.

Shapes: N images, R retained classes, D features, C classes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional

from expunge.core.epoch import compute_learning_rate
from expunge.core.rules.replay_head import LOW_LOGIT, make_low_row
from expunge.core.stages import WEIGHT_LAYERS

NAME = "align"
# What the repair may cost, in shares of the images that a training goes through. COLA's authors
# give 2 to 3 % of retraining's cost; here the forward pass of the teacher comes to it.
SHARE = 0.03
# A batch is as large as leaves so many steps, within bounds: with fewer, too little comes back.
STEPS = 500
LEAST_BATCH, MOST_BATCH = 8, 64  # a BatchNorm needs several images
RATE = 2e-3  # of Adam, at the start; it falls along a cosine. At 1e-3 less comes back in the time
KEEP = 0.4  # on MNIST, more keeps more of the class, and less costs more retained accuracy
LAST = 16  # batches at the end: the loss is reported of them, and the low row is made for them


@dataclass(frozen=True)
class Part:
    """A model from its last stage on: `stage` gives the features, and `head` the logits."""

    stage: nn.Module
    head: nn.Linear

    def infer(self, entering: Tensor) -> Tensor:
        """Return the logits_NC for what enters the stage."""
        logits_NC: Tensor = self.head(self.stage(entering))
        return logits_NC


@dataclass(frozen=True)
class Repair:
    """What is repaired, and how long.

    `low` are the classes that are forgotten, now or before, whose logits become low, and `retain`
    the others, rising. `seed` is that of the noise.
    """

    low: tuple[int, ...]
    retain: tuple[int, ...]
    steps: int
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """How many steps a repair takes, of batches of how many images."""

    steps: int
    batch: int


def plan_steps(epochs: int, images: int) -> Plan:
    """Return the steps that come to `SHARE` of a training, one at least.

    The training goes `epochs` times through so many images.
    """
    affordable = SHARE * epochs * images
    batch = max(LEAST_BATCH, min(MOST_BATCH, int(affordable / STEPS)))
    return Plan(max(1, int(affordable / batch)), batch)


def disturb(part: Part, keep: float, generator: torch.Generator) -> None:
    """Shrink the weights of every layer to the share `keep`, and add noise; in place.

    Biases and norms stay. The generator has to be on the CPU, since a GPU's draws other numbers.
    """
    layers = [m for m in part.stage.modules() if isinstance(m, WEIGHT_LAYERS)]
    with torch.no_grad():
        for layer in [*layers, part.head]:
            weight = layer.get_parameter("weight")
            noise = torch.randn(weight.shape, generator=generator).to(weight.device)
            scale = (1 - keep**2) ** 0.5 * weight.std()
            weight.mul_(keep).add_(scale * noise)


def align(
    teacher: Part, student: Part, batches: Iterable[tuple[Tensor, Tensor]], repair: Repair
) -> float:
    """Disturb and repair the student, in place; return its mean loss over the last batches, nats.

    Args:
        teacher: of the original, in eval mode; it stays as it is.
        student: of another model with the same layers, of which it shares none. It is left in eval
            mode. Until then its BatchNorms go by the batches.
        batches: what enters the stage for retained images, and their labels_N; the first
            `repair.steps` of them are taken.
        repair: what is forgotten, what stays, and how long.

    Raises:
        ValueError: a loss is not finite.
    """
    disturb(student, KEEP, torch.Generator().manual_seed(repair.seed))
    learner = nn.ModuleList([student.stage, student.head])
    optimizer = torch.optim.Adam(learner.parameters(), lr=RATE)
    retain_R = torch.tensor(repair.retain, device=student.head.weight.device)
    losses: list[Tensor] = []
    last: list[Tensor] = []
    learner.train()
    for step, (entering, labels_N) in enumerate(islice(batches, repair.steps)):
        for group in optimizer.param_groups:
            group["lr"] = compute_learning_rate(step, repair.steps, RATE, "cosine")
        with torch.no_grad():
            wanted_NR = teacher.infer(entering)[:, retain_R].log_softmax(dim=1)
        found_NR = student.infer(entering)[:, retain_R].log_softmax(dim=1)
        divergence = functional.kl_div(found_NR, wanted_NR, reduction="batchmean", log_target=True)
        # a label is no row: those of the forgotten classes are missing
        rows_N = torch.searchsorted(retain_R, labels_N)
        loss = divergence + functional.nll_loss(found_NR, rows_N)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses = [*losses[1 - LAST :], loss.detach()]
        last = [*last[1 - LAST :], entering]
    learner.eval()
    mean_loss = float(torch.stack(losses).mean())
    with torch.no_grad():
        features_ND = torch.cat([student.stage(entering) for entering in last])
        _lower_rows(student.head, features_ND, repair)
    # one that was no number before has made all later ones so
    if not math.isfinite(mean_loss):
        raise ValueError(f"the loss of the repair is {mean_loss} at rate {RATE}")
    return mean_loss


def _lower_rows(head: nn.Linear, features_ND: Tensor, repair: Repair) -> None:
    row_D, bias = make_low_row(features_ND, LOW_LOGIT)
    low = list(repair.low)
    head.weight[low] = row_D
    if head.bias is not None:
        head.bias[low] = bias
