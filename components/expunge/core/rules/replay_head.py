"""The head of a model whose last stage was refitted by replay, and the change of the whole model.

The forgotten rows become a low logit, and the retained ones are repaired by ridge regression onto
their old logits.

Shapes: N draws, D features, C classes, R retained classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.core.heads import Head, find_head_name
from expunge.core.rules.paths import Change
from expunge.core.rules.replay import Fit, Replay
from expunge.core.rules.whitening import damp

REPAIR_DRAWS, REPAIR_CODES = 300, 20  # of each retained class, and how often its code is repeated
LOW_LOGIT = 5.0  # how far below nought the forgotten rows' logits are
REPAIR = 0.1  # ridge of the repair, in mean squares of a feature


def rebuild_head(replay: Replay, fit: Fit) -> Head:
    """Return the head for a refitted stage: retained rows repaired, forgotten ones low.

    The retained rows are those of a ridge regression from the new features onto the old logits
    among the retained classes, on draws and codes of the retained classes, that starts at the old
    rows:

        V = V0 + ((F'F + 0.1 mean(diag F'F) I)^-1 F'(Z - F V0'))'   with a 1 beside the features
    """
    task, head = replay.task, replay.head
    retain = list(task.retain)
    generator = torch.Generator().manual_seed(task.seed + 8)
    each = replay.count_draws(REPAIR_DRAWS, passes=3)
    entering = torch.cat([replay.draw(index, each, generator) for index in retain])
    entering = torch.cat([entering, *[replay.entering_codes] * REPAIR_CODES])
    new_ND = replay.compute_features(fit.parameters, entering).double()
    old_ND = replay.compute_features(replay.weights, entering).double()
    weight_CD, bias_C = head.weight_CD.double(), head.bias_C.double()
    wanted_NR = old_ND @ weight_CD[retain].T + bias_C[retain]
    rows_ND = torch.cat([new_ND, new_ND.new_ones(len(new_ND), 1)], dim=1)
    start_RD = torch.cat([weight_CD[retain], bias_C[retain][:, None]], dim=1)
    step_DR = torch.linalg.solve(
        damp(rows_ND.T @ rows_ND, REPAIR), rows_ND.T @ (wanted_NR - rows_ND @ start_RD.T)
    )
    repaired_RD = start_RD + step_DR.T
    weight_CD, bias_C = weight_CD.clone(), bias_C.clone()
    weight_CD[retain], bias_C[retain] = repaired_RD[:, :-1], repaired_RD[:, -1]
    row_D, bias = make_low_row(new_ND, LOW_LOGIT)
    weight_CD[list(task.forget)], bias_C[list(task.forget)] = row_D, bias
    return Head(weight_CD.float(), bias_C.float())


def make_low_row(features_ND: Tensor, low_logit: float) -> tuple[Tensor, float]:
    """Return a head's row and bias that give features like these about -low_logit.

    It is -low_logit m / |m|^2 for their mean m, as retrained models have it. Behind a LayerNorm the
    mean says little of a feature; then it is a row of noughts with a bias.
    """
    mean_D = features_ND.mean(dim=0)
    logits_N = features_ND @ mean_D / mean_D.square().sum()  # 1 on average
    if float(logits_N.std()) > 0.5:
        return torch.zeros_like(mean_D), -low_logit
    return -low_logit * mean_D / mean_D.square().sum(), 0.0


@dataclass(frozen=True)
class Outcome:
    """What replay did: the change of the weights, and what is left of both parts of the loss."""

    change: Change
    forget_loss: float
    retain_loss: float


def finish(replay: Replay, fit: Fit) -> Outcome:
    """Return the change of the whole model that a refitted stage makes, its head rebuilt."""
    change = compute_change(replay.model, fit.parameters, rebuild_head(replay, fit))
    return Outcome(change, fit.forget_loss, fit.retain_loss)


def compute_change(model: nn.Module, parameters: Mapping[str, Tensor], head: Head) -> Change:
    """Return the change that makes a model's stage and head these."""
    name = find_head_name(model, len(head.bias_C))
    before = dict(model.named_parameters())
    after = {**parameters, f"{name}.weight": head.weight_CD}
    # without a bias the low row has none either
    if f"{name}.bias" in before:
        after[f"{name}.bias"] = head.bias_C
    return {key: value - before[key].detach() for key, value in after.items()}
