"""U-LiRA: the statistic, the likelihood ratios, and what they tell apart."""

import itertools
import math
from statistics import NormalDist, mean, variance

import pytest
import torch
from lira import (
    LEAST_VARIANCE,
    OWN_VARIANCE,
    chance_band,
    fit_shadows,
    likelihood_ratios,
    scaled_confidence,
    separation,
)
from torch import Tensor


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def slow_ratio(value: float, unlearned: NormalDist, retrained: NormalDist) -> float:
    return math.log(unlearned.pdf(value)) - math.log(retrained.pdf(value))


def slow_separation(
    positive: list[float], negative: list[float], fpr: float
) -> tuple[float, float]:
    """Every pair, and every threshold."""
    auc = mean((p > n) + (p == n) / 2 for p in positive for n in negative)
    best = 0.0
    for threshold in [*positive, *negative]:
        if sum(n >= threshold for n in negative) <= fpr * len(negative):
            best = max(best, mean(p >= threshold for p in positive))
    return auc, best


def auc_deviation(positives: int, negatives: int) -> float:
    """Return the standard deviation of the AUC of independent scores that are distributed alike."""
    return math.sqrt((positives + negatives + 1) / (12 * positives * negatives))


def test_scaled_confidence_is_the_logit_of_the_probability() -> None:
    logits_NC = 3 * normal(50, 7)
    classes_N = torch.arange(50) % 7
    p_N = logits_NC.softmax(dim=1)[torch.arange(50), classes_N]
    torch.testing.assert_close(
        scaled_confidence(logits_NC, classes_N), p_N.log() - (1 - p_N).log(), rtol=1e-12, atol=1e-12
    )


def test_scaled_confidence_of_a_saturated_softmax_is_finite() -> None:
    logits_NC = torch.tensor([[1000.0, 0.0, 0.0], [-1e4, 5.0, -1e4], [0.0, 0.0, -1e4]])
    found_N = scaled_confidence(logits_NC, torch.tensor([0, 0, 0]))
    assert found_N.tolist() == pytest.approx([1000 - math.log(2), -10005.0, 0.0])
    assert found_N.dtype == torch.float64


def test_scaled_confidence_follows_relabelled_classes_and_ignores_a_shift() -> None:
    logits_NC, classes_N = normal(20, 5), torch.arange(20) % 5
    expected_N = scaled_confidence(logits_NC, classes_N)
    order_C = torch.tensor([3, 0, 4, 1, 2])
    relabelled_N = scaled_confidence(logits_NC[:, order_C], order_C.argsort()[classes_N])
    torch.testing.assert_close(relabelled_N, expected_N)
    torch.testing.assert_close(scaled_confidence(logits_NC + 7, classes_N), expected_N)


def test_few_shadows_share_one_variance_and_many_have_their_own() -> None:
    scales_N = torch.tensor([1.0, 2.0, 3.0])
    for shadows in (OWN_VARIANCE - 1, OWN_VARIANCE):
        statistics_SN = normal(shadows, 3) * scales_N
        columns = [column.tolist() for column in statistics_SN.T]
        expected = [variance(column) for column in columns]
        if shadows < OWN_VARIANCE:
            expected = [mean(expected)] * 3
        fitted = fit_shadows(statistics_SN)
        assert fitted.mean_N.tolist() == pytest.approx([mean(column) for column in columns])
        assert fitted.variance_N.tolist() == pytest.approx(expected)


def test_a_constant_statistic_gives_finite_ratios() -> None:
    """As the forgotten logit of a mask would, were the others constant too."""
    assert fit_shadows(torch.full((8, 2), -1e4)).variance_N.tolist() == [LEAST_VARIANCE] * 2
    ratios_TN = likelihood_ratios(normal(3, 2), torch.full((8, 2), -1e4), normal(8, 2))
    assert ratios_TN.isfinite().all()
    assert (ratios_TN < 0).all()


@pytest.mark.parametrize("shadows", [9, OWN_VARIANCE])
def test_ratios_are_those_of_the_slow_way(shadows: int) -> None:
    unlearned_SN, retrained_SN = normal(shadows, 4, seed=1) * 2 + 1, normal(shadows + 3, 4, seed=2)
    targets_TN = normal(5, 4, seed=3)
    fits = []
    for statistics_SN in (unlearned_SN, retrained_SN):
        columns = [column.tolist() for column in statistics_SN.T]
        own = [variance(column) for column in columns]
        if len(statistics_SN) < OWN_VARIANCE:
            own = [mean(own)] * 4
        fits.append([NormalDist(mean(c), math.sqrt(v)) for c, v in zip(columns, own, strict=True)])
    ratios_TN = likelihood_ratios(targets_TN, unlearned_SN, retrained_SN)
    for t, n in itertools.product(range(5), range(4)):
        expected = slow_ratio(float(targets_TN[t, n]), fits[0][n], fits[1][n])
        assert float(ratios_TN[t, n]) == pytest.approx(expected)


def test_ratios_follow_their_samples_and_forget_the_order_of_the_shadows() -> None:
    targets_TN, unlearned_SN, retrained_SN = (
        normal(3, 6),
        normal(9, 6, seed=1),
        normal(9, 6, seed=2),
    )
    expected_TN = likelihood_ratios(targets_TN, unlearned_SN, retrained_SN)
    order_N = torch.tensor([4, 2, 0, 5, 1, 3])
    parts = [part[:, order_N] for part in (targets_TN, unlearned_SN, retrained_SN)]
    torch.testing.assert_close(likelihood_ratios(*parts), expected_TN[:, order_N])
    torch.testing.assert_close(
        likelihood_ratios(targets_TN, unlearned_SN.flip(0), retrained_SN), expected_TN
    )
    torch.testing.assert_close(
        likelihood_ratios(targets_TN, retrained_SN, unlearned_SN), -expected_TN
    )


def test_the_same_shadows_on_both_sides_say_nothing() -> None:
    shadows_SN = normal(9, 6)
    assert not likelihood_ratios(normal(4, 6, seed=1), shadows_SN, shadows_SN).any()


def test_separation_is_that_of_the_slow_way_with_ties_too() -> None:
    positive, negative = (
        (normal(60, seed=4) + 1).round(decimals=1),
        normal(200, seed=5).round(decimals=1),
    )
    for fpr in (0.01, 0.1, 0.001):
        found = separation(positive, negative, fpr)
        expected = slow_separation(positive.tolist(), negative.tolist(), fpr)
        assert (found.auc, found.tpr) == pytest.approx(expected)
        assert found.fpr == fpr


def test_a_false_positive_rate_is_allowed_up_to_its_bound() -> None:
    """One of 100 negatives above all positives; and a ROC curve that is a straight line."""
    positive, negative = torch.ones(10), torch.tensor([2.0] + 99 * [0.0])
    assert separation(positive, negative, 0.01).tpr == 1.0
    assert separation(positive, negative, 0.009).tpr == 0.0
    levels = torch.arange(4.0)
    assert separation(levels, levels, 0.5).tpr == 0.5


def test_separation_depends_on_the_ranking_alone() -> None:
    positive_TN, negative_TN = normal(4, 30, seed=6) + 0.5, normal(5, 30, seed=7)
    found = separation(positive_TN, negative_TN)
    assert separation(positive_TN.flip(0), negative_TN.flip(1)) == found
    assert separation(positive_TN.exp(), negative_TN.exp()) == found
    assert separation(negative_TN, positive_TN).auc == pytest.approx(1 - found.auc)
    assert separation(torch.zeros(3, 2), torch.zeros(2, 2)).auc == 0.5


@pytest.mark.parametrize("shadows", [16, OWN_VARIANCE])
def test_equal_distributions_give_half(shadows: int) -> None:
    """Within four standard deviations of what independent scores have."""
    targets, samples = 20, 100
    mean_N, deviation_N = 3 * normal(samples, seed=8), normal(samples, seed=9).exp()
    unlearned_SN, retrained_SN, positive_TN, negative_TN = (
        mean_N + deviation_N * normal(count, samples, seed=seed)
        for count, seed in ((shadows, 10), (shadows, 11), (targets, 12), (targets, 13))
    )
    scores = [
        likelihood_ratios(targets_TN, unlearned_SN, retrained_SN)
        for targets_TN in (positive_TN, negative_TN)
    ]
    bound = 4 * auc_deviation(targets * samples, targets * samples)
    found = separation(*scores)
    assert bound < 0.04
    assert abs(found.auc - 0.5) < bound
    # 20 of 2000 are allowed, so 20 are expected; six standard deviations of that
    assert found.tpr < 0.01 + 6 * math.sqrt(0.01 / 2000)


@pytest.mark.parametrize(("shift", "auc"), [(1.0, 0.760), (2.0, 0.921), (12.0, 1.0)])
def test_distributions_that_lie_apart_give_the_auc_of_their_distance(
    shift: float, auc: float
) -> None:
    """Phi(d / sqrt(2)) for two normal distributions that are d standard deviations apart."""
    assert auc == pytest.approx(NormalDist().cdf(shift / math.sqrt(2)), abs=1e-3)
    mean_N = 3 * normal(100, seed=14)
    unlearned_SN, positive_TN = (mean_N + shift + normal(n, 100, seed=n) for n in (200, 20))
    retrained_SN, negative_TN = (mean_N + normal(n, 100, seed=n) for n in (201, 21))
    scores = [
        likelihood_ratios(targets_TN, unlearned_SN, retrained_SN)
        for targets_TN in (positive_TN, negative_TN)
    ]
    found = separation(*scores)
    assert found.auc == pytest.approx(auc, abs=4 * auc_deviation(2000, 2000))
    assert (found.tpr == 1.0) == (shift == 12.0)


def test_each_sample_is_judged_by_its_own_shadows() -> None:
    """Half of the samples move up and half down: one threshold for all would find nothing."""
    shift_N = torch.tensor([6.0, -6.0]).repeat(50)
    unlearned_SN, positive_TN = (shift_N + normal(n, 100, seed=n) for n in (16, 10))
    retrained_SN, negative_TN = normal(17, 100), normal(11, 100)
    assert separation(positive_TN, negative_TN).auc == pytest.approx(0.5, abs=0.05)
    scores = [
        likelihood_ratios(targets_TN, unlearned_SN, retrained_SN)
        for targets_TN in (positive_TN, negative_TN)
    ]
    assert separation(*scores).auc > 0.999


def test_the_chance_band_is_that_of_every_relabelling() -> None:
    """With ties, as the scores are whole numbers."""
    positive_TN, negative_TN = normal(2, 5, seed=15).round() + 1, normal(3, 5, seed=16).round()
    scores_TN = torch.cat([positive_TN, negative_TN])
    distances = []
    for chosen in itertools.combinations(range(5), 2):
        others = [t for t in range(5) if t not in chosen]
        auc = separation(scores_TN[list(chosen)], scores_TN[others]).auc
        distances.append(abs(auc - 0.5))
    generator = torch.Generator().manual_seed(0)
    band = chance_band(positive_TN, negative_TN, generator, level=1.0)
    assert band == pytest.approx(max(distances))
    exact = torch.tensor(distances, dtype=torch.float64).quantile(0.5)
    found = chance_band(positive_TN, negative_TN, generator, level=0.5)
    assert found == pytest.approx(float(exact), abs=0.05)


def test_the_chance_band_knows_that_a_models_samples_go_together() -> None:
    together_TN = normal(16, 1, seed=17) + 0.01 * normal(16, 50, seed=18)
    apart_TN = normal(16, 50, seed=19)
    bands = [
        chance_band(scores_TN[:8], scores_TN[8:], torch.Generator().manual_seed(0))
        for scores_TN in (together_TN, apart_TN)
    ]
    # as of 8 against 8 independent scores, and of 400 against 400
    assert bands[0] == pytest.approx(1.96 * auc_deviation(8, 8), rel=0.1)
    assert bands[1] == pytest.approx(1.96 * auc_deviation(400, 400), rel=0.3)


def test_the_auc_of_nothing_stays_within_the_chance_band() -> None:
    generator = torch.Generator().manual_seed(0)
    within = 0
    for seed in range(100):
        scores_TN = normal(16, 1, seed=seed) + normal(16, 20, seed=1000 + seed)
        positive_TN, negative_TN = scores_TN[:8], scores_TN[8:]
        band = chance_band(positive_TN, negative_TN, generator, draws=200)
        within += abs(separation(positive_TN, negative_TN).auc - 0.5) <= band
    assert 95 - 4 * math.sqrt(100 * 0.95 * 0.05) <= within < 100


def test_misuse_is_named() -> None:
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"logits have 1 class; .* two classes at least"):
        scaled_confidence(torch.zeros(1, 1), one)
    with pytest.raises(ValueError, match=r"1 of 2 logits are not finite; .* such as -1e4"):
        scaled_confidence(torch.tensor([[-torch.inf, 0.0]]), one)
    with pytest.raises(ValueError, match="1 of 4 shadow statistics are not finite"):
        fit_shadows(torch.tensor([[0.0, 1.0], [torch.nan, 1.0]]))
    with pytest.raises(ValueError, match="there are 1 shadow models; a variance needs two"):
        fit_shadows(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"\[3, 4, 4\] samples; expected the same samples"):
        likelihood_ratios(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="0 scores of unlearned and 4 of retrained targets"):
        separation(torch.zeros(0, 4), torch.zeros(1, 4))
