"""U-LiRA: can a model that unlearned a sample be told from one that never saw it?

For each sample, shadow models of both kinds give two distributions of one number, the statistic:
those that were trained with the sample and then unlearned it, and those that were retrained without
it. A target is scored by how much likelier its own number is under the first than under the second.
Equal distributions leave an attacker an AUC of 0.5, and as many true positives as false ones.

Shapes: N samples, C classes, S shadow models, T target models. Everything is computed in float64.
Source: Hayes et al., "Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of
Privacy" (2024), after Carlini et al., "Membership Inference Attacks From First Principles" (2022).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Shadow models of a kind from which on each sample has a variance of its own. From S models one has
# a relative error of sqrt(2 / (S - 1)): 0.37 for 16, 0.18 for 64. A variance that is too small by
# chance makes a likelihood ratio huge, and such pairs fill the top of the ranking, where the true
# positive rate at a low false one is read. Carlini et al. share one variance below 64 models, both
# kinds together; twice as many are asked for here, as targets are few and the tails count.
OWN_VARIANCE = 64
# A statistic is the difference of float32 logits of about 10, whose rounding is 1e-6: no standard
# deviation below that means anything, and none at all (a constant) would divide by zero.
LEAST_VARIANCE = 1e-12


@dataclass(frozen=True)
class Gaussians:
    """A normal distribution of the statistic for each sample."""

    mean_N: Tensor
    variance_N: Tensor

    def log_density(self, statistics_TN: Tensor) -> Tensor:
        """Log N(x; mean, variance) of each value, T x N, in nats."""
        squares_TN = (statistics_TN.double() - self.mean_N).square() / self.variance_N
        return -0.5 * (squares_TN + self.variance_N.log() + math.log(2 * math.pi))


@dataclass(frozen=True)
class Separation:
    """How well scores tell the two kinds of targets apart.

    `auc` is the area under the ROC curve over all pairs of a target and a sample, `tpr` the largest
    true positive rate at a false positive rate of at most `fpr`.
    """

    auc: float
    tpr: float
    fpr: float


def scaled_confidence(logits_NC: Tensor, classes_N: Tensor) -> Tensor:
    """log p_y - log(1 - p_y) for the class y given for each sample, float64, shape N.

    p being the softmax, that is z_y - log(sum over c != y of exp(z_c)): neither p_y nor 1 - p_y is
    computed, so a saturated softmax gives a finite value. Over models it is close to normal, which
    p_y is not (Carlini et al., section V).

    Raises:
        ValueError: a logit is not finite, or there is only one class.
    """
    if logits_NC.shape[1] < 2:
        raise ValueError(
            f"logits have {logits_NC.shape[1]} class; the confidence in one is scaled by the "
            "others, so give two classes at least"
        )
    logits_NC = _finite("logits", logits_NC)
    columns_N1 = classes_N[:, None]
    others_NC = logits_NC.scatter(1, columns_N1, -torch.inf)
    return logits_NC.gather(1, columns_N1)[:, 0] - others_NC.logsumexp(dim=1)


def fit_shadows(statistics_SN: Tensor) -> Gaussians:
    """Mean and unbiased variance over the shadow models, for each sample.

    Below `OWN_VARIANCE` models all samples share the mean of their variances; the means stay each
    sample's own, which is what makes the attack one per sample.

    Raises:
        ValueError: there are fewer than two models, or a value is not finite.
    """
    statistics_SN = _finite("shadow statistics", statistics_SN)
    if len(statistics_SN) < 2:
        raise ValueError(
            f"there are {len(statistics_SN)} shadow models; a variance needs two at least"
        )
    variance_N = statistics_SN.var(dim=0)
    if len(statistics_SN) < OWN_VARIANCE:
        variance_N = variance_N.mean().expand(len(variance_N))
    return Gaussians(statistics_SN.mean(dim=0), variance_N.clamp_min(LEAST_VARIANCE))


def likelihood_ratios(targets_TN: Tensor, unlearned_SN: Tensor, retrained_SN: Tensor) -> Tensor:
    """Return the scores log N(x; unlearned) - log N(x; retrained) of targets, T x N, in nats.

    Above 0: the target's statistic x is likelier for a model that was trained with the sample and
    then unlearned it. The two kinds of shadow models need not be equally many. Ratios of several
    statistics may be added, as if they were independent given the kind of model.

    Raises:
        ValueError: samples differ in number, a value is not finite, or a kind has under two models.
    """
    counts = [part.shape[1] for part in (targets_TN, unlearned_SN, retrained_SN)]
    if len(set(counts)) > 1:
        raise ValueError(
            f"targets, unlearned and retrained shadows have {counts} samples; expected the same "
            "samples in the same order"
        )
    targets_TN = _finite("target statistics", targets_TN)
    unlearned, retrained = fit_shadows(unlearned_SN), fit_shadows(retrained_SN)
    return unlearned.log_density(targets_TN) - retrained.log_density(targets_TN)


def separation(unlearned_TN: Tensor, retrained_TN: Tensor, fpr: float = 0.01) -> Separation:
    """Measure how well scores tell unlearned targets (positive) from retrained ones (negative).

    With fewer than 1 / fpr negative pairs no false positive is allowed at all.

    Raises:
        ValueError: there is no score of one kind.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    if not unlearned_TN.numel() or not retrained_TN.numel():
        raise ValueError(
            f"there are {unlearned_TN.numel()} scores of unlearned and {retrained_TN.numel()} of "
            "retrained targets; expected some of both"
        )
    positive, negative = unlearned_TN.flatten(), retrained_TN.flatten()
    scores = torch.cat([positive, negative]).cpu().numpy()
    truth = torch.cat([torch.ones_like(positive), torch.zeros_like(negative)]).cpu().numpy()
    rates_fpr, rates_tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    return Separation(
        auc=float(roc_auc_score(truth, scores)),
        tpr=float(rates_tpr[rates_fpr <= fpr].max()),
        fpr=fpr,
    )


def chance_band(
    unlearned_TN: Tensor,
    retrained_TN: Tensor,
    generator: torch.Generator,
    *,
    draws: int = 2000,
    level: float = 0.95,
) -> float:
    """How far from 0.5 the AUC is by chance: |AUC - 0.5| stays within it in `level` of all cases.

    Were the two kinds of targets alike, any of them could bear either name. So names are drawn anew
    for whole targets, `draws` times: the scores of one model go together, and counting its samples
    as independent would make the band far too narrow. 2000 draws give the 95 % point to 1 % or so.
    """
    scores_TN = torch.cat([unlearned_TN, retrained_TN])
    above_TT = torch.stack([_share_above(row_N, scores_TN) for row_N in scores_TN])
    positives = len(unlearned_TN)
    distances = []
    for _ in range(draws):
        order_T = torch.randperm(len(scores_TN), generator=generator).to(scores_TN.device)
        pairs = above_TT[order_T[:positives]][:, order_T[positives:]]
        distances.append((pairs.mean() - 0.5).abs())
    return float(torch.stack(distances).quantile(level))


def _share_above(row_N: Tensor, scores_TN: Tensor) -> Tensor:
    """For each target, the share of pairs of samples in which the row's score is above its; ties
    count half."""
    pairs_NTN = row_N[:, None, None] - scores_TN
    return ((pairs_NTN > 0).double() + (pairs_NTN == 0).double() / 2).mean(dim=(0, 2))


def _finite(what: str, values: Tensor) -> Tensor:
    """Return the values in float64."""
    if not bool(values.isfinite().all()):
        count = int((~values.isfinite()).sum())
        raise ValueError(
            f"{count} of {values.numel()} {what} are not finite; expected finite ones, so mask a "
            "class with a logit such as -1e4"
        )
    return values.double()
