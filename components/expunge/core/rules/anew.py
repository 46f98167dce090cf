"""Replay where vectors enter the last stage, as in an MLP: the stage is trained anew.

The stage and the head begin at random weights and learn, from draws of the retained classes alone,
to answer as the model did. So they know of the forgotten classes only what the answers to others
tell: no depth has to be found, and no image is needed. With q the model's softmax over the retained
classes R, p that of the new network, z its logits and F the forgotten classes:

    minimise  KL(q || p) + 0.01 mean over F of max(0, z_c + 5)

over mixtures (1 - u) h + u h' of two draws, u uniform in [0, 1/2], and over the retained codes.
This is the distillation of Hinton et al. ("Distilling the knowledge in a neural network", 2015) on
the mixed inputs of Zhang et al. ("mixup", ICLR 2018). The mixtures show what the model does between
its classes, where images of the forgotten ones lie. The second term keeps the forgotten logits low,
as in retrained models. The optimiser is Adam with a cosine schedule.

Norms and their running statistics stay, and so does what enters the stage.

Shapes: N draws of a batch, R retained classes.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.core.heads import Head
from expunge.core.rules.replay import Task, has_bias, read_whole_head
from expunge.core.rules.replay_head import LOW_LOGIT
from expunge.core.stages import Stage
from expunge.core.statistics import ClassStatistics

STEPS = 2000
BATCH, CODES = 128, 8  # draws in a step, and the retained codes among them
RATE = 2e-3  # of Adam
POOL = 27_000  # draws of all retained classes together, from which each step takes its batch
MOST_OF_A_CLASS = 3000
LOW_WEIGHT = 0.01


@dataclass(frozen=True)
class Trained:
    """A stage that was trained anew: its parameters by name, its head, and the last loss, nats."""

    parameters: dict[str, Tensor]
    head: Head
    loss: float


def train_anew(
    model: nn.Module,
    stage: Stage,
    statistics: ClassStatistics,
    task: Task,
    codes: tuple[Tensor, Tensor],
) -> Trained:
    """Train the stage and the head anew, so that they answer as the model does on retained draws.

    The model has to be in eval mode and is not changed. `codes` are its mnemonic codes and their
    class indices.
    """
    device = codes[0].device
    retain = torch.tensor(task.retain, device=device)
    generator = torch.Generator().manual_seed(task.seed)
    each = min(MOST_OF_A_CLASS, max(1, POOL // len(task.retain)))
    pool = torch.cat([statistics.draw(index, each, generator) for index in task.retain])
    with torch.no_grad():
        coded = stage.enter(codes[0][torch.isin(codes[1], retain)])
    old = read_whole_head(model, max((*task.forget, *task.retain)) + 1)
    upper = copy.deepcopy(stage.upper)
    classes, features = old.weight_CD.shape
    head = nn.Linear(features, classes, bias=has_bias(model)).to(device)
    layers = [module for module in upper.modules() if isinstance(module, nn.Linear)]
    learned = _draw_weights([*layers, head], task.seed)
    optimizer = torch.optim.Adam(learned, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    forget = list(task.forget)
    loss = torch.zeros(())
    for _ in range(STEPS):
        entering = torch.cat([_mix(pool, BATCH - CODES, generator), _take(coded, CODES, generator)])
        with torch.no_grad():
            wanted_NC = old.logits(stage.upper(entering).float())
        logits_NC = head(upper(entering).float())
        loss = nn.functional.kl_div(
            logits_NC[:, retain].log_softmax(dim=1),
            wanted_NC[:, retain].log_softmax(dim=1),
            log_target=True,
            reduction="batchmean",
        )
        low = (logits_NC[:, forget] + LOW_LOGIT).clamp_min(0).mean()
        optimizer.zero_grad()
        (loss + LOW_WEIGHT * low).backward()
        optimizer.step()
        schedule.step()
    if not bool(loss.isfinite()):
        raise ValueError("the stage that was trained anew gives values that are no numbers")
    parameters = {name: value.detach() for name, value in upper.named_parameters()}
    bias_C = head.bias.detach() if has_bias(model) else torch.zeros_like(old.bias_C)
    return Trained(parameters, Head(head.weight.detach(), bias_C), float(loss.detach()))


def _draw_weights(layers: Sequence[nn.Linear], seed: int) -> list[nn.Parameter]:
    """Draw the weights of layers as PyTorch does for new ones, and return them, to be learned."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in layers:
            layer.reset_parameters()
    learned = [parameter for layer in layers for parameter in layer.parameters()]
    for parameter in learned:
        parameter.requires_grad_()
    return learned


def _take(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return rows[torch.randint(len(rows), (count,), generator=generator).to(rows.device)]


def _mix(pool: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return mixtures of two draws each, the first of them at least half."""
    share = torch.rand(count, *[1] * (pool.dim() - 1), generator=generator).to(pool.device) / 2
    return torch.lerp(_take(pool, count, generator), _take(pool, count, generator), share)
