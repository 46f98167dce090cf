"""A forgotten class's row of the head, made from a few of its images.

Shapes: N images, D features, C classes. Source of the idea: prototypical networks (Snell et al.,
2017), and weight imprinting (Qi et al., 2018).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from expunge.core.attacks.case import Body, Case
from expunge.core.heads import Observed

# Samples whose mean feature is the prototype, from one to ten; more would be a head's training.
SHOTS = (1, 3, 10)
DRAWS = 8  # of each number of shots: one draw alone moves the result by several points


def measure(case: Case, seen: Body) -> list[float]:
    """Return the accuracy on each forgotten class's test samples with its prototype as its row."""
    # a generator of its own: every model gets the same draws, whatever was measured before
    generator = torch.Generator().manual_seed(case.seed)
    return recover_with_prototypes(
        seen.head_train,
        seen.forget_test,
        forget=case.forget,
        retain=case.retain,
        generator=generator,
    )


def recover_with_prototypes(
    sample: Observed,
    test: Observed,
    *,
    forget: Sequence[int],
    retain: Sequence[int],
    generator: torch.Generator,
) -> list[float]:
    """Return the accuracy on each forgotten class when its row of the head is a prototype.

    The row points from the centre m of the retained classes' mean features to the mean mu of a few
    features of the class: w = t (mu - m). t and the bias are such that at mu the logit is what a
    retained class has on its own samples on average, and at m what it has on all of them. The
    accuracy is the mean over `SHOTS` and `DRAWS`.

    Args:
        sample: a small labelled sample of all classes, which the prototypes are drawn from.
        test: the forgotten classes' test samples.
        forget: the forgotten classes' indices.
        retain: the retained classes' indices.
        generator: draws the samples of the prototypes, on the CPU.
    """
    own_parts = [sample.of(index) for index in retain]
    center_D = torch.stack([part.features_ND.mean(dim=0) for part in own_parts]).mean(dim=0)
    own = torch.stack(
        [part.logits_NC[:, index].mean() for part, index in zip(own_parts, retain, strict=True)]
    ).mean()
    average = torch.cat([part.logits_NC[:, list(retain)] for part in own_parts]).mean()
    found = []
    for index in forget:
        pool_ND, target = sample.of(index).features_ND, test.of(index)
        # the other forgotten classes take no part: their rows may be masked or not
        others_N = _mask_logits(target.logits_NC, forget).amax(dim=1)
        shares = []
        for shots in SHOTS:
            for _ in range(DRAWS):
                rows = torch.randperm(len(pool_ND), generator=generator)[:shots]
                direction_D = pool_ND[rows.to(pool_ND.device)].mean(dim=0) - center_D
                row_D = direction_D * (own - average) / direction_D.square().sum()
                logits_N = (target.features_ND - center_D) @ row_D + average
                shares.append((logits_N > others_N).double().mean())
        found.append(float(torch.stack(shares).mean()))
    return found


def _mask_logits(logits_NC: Tensor, forget: Sequence[int]) -> Tensor:
    """Return the logits with those of the forgotten classes at minus infinity."""
    others_NC = logits_NC.clone()
    others_NC[:, list(forget)] = -torch.inf
    return others_NC
