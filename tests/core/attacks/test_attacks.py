"""The attacks on features made by hand, for which the right answer is known."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from expunge.core.attacks.case import Body, Case
from expunge.core.attacks.class_membership import fit_discriminators, recognise_class
from expunge.core.attacks.head_recovery import recover_with_new_head
from expunge.core.attacks.head_recovery_logistic import (
    STRENGTH,
    fit_logistic_head,
    recover_with_logistic_head,
)
from expunge.core.attacks.head_swap import measure_fit, swap_head
from expunge.core.attacks.layer_recovery import measure as measure_layers
from expunge.core.attacks.layer_recovery import measure_blocks
from expunge.core.attacks.membership import infer_members
from expunge.core.attacks.prototype_recovery import recover_with_prototypes
from expunge.core.attacks.relearning import Relearning, relearn
from expunge.core.heads import Head, Observed, mask_head, with_head

CLASSES, EACH = 4, 40
FORGET, RETAIN = [3], [0, 1, 2]


def clusters(places: Sequence[Sequence[float]], seed: int = 0, spread: float = 0.1) -> Observed:
    """EACH features of every class around its place, under a head that names the nearest axis."""
    generator = torch.Generator().manual_seed(seed)
    centers_CD = torch.tensor(places, dtype=torch.float32)
    labels_N = torch.arange(len(places)).repeat_interleave(EACH)
    features_ND = centers_CD[labels_N]
    features_ND = features_ND + spread * torch.randn(features_ND.shape, generator=generator)
    head = Head(torch.eye(len(places), centers_CD.shape[1]), torch.zeros(len(places)))
    return Observed(features_ND, head.logits(features_ND), labels_N)


APART = torch.eye(CLASSES).tolist()
# class 3 lies where class 0 does: a body that cannot tell the two
MERGED = [*APART[:3], APART[0]]
HEAD = Head(torch.eye(CLASSES), torch.zeros(CLASSES))


def test_a_head_swap_brings_a_masked_class_back_and_no_rotated_body() -> None:
    test = clusters(APART)
    assert swap_head(test.under(mask_head(HEAD, FORGET)), HEAD, FORGET) == [1.0]
    turned = Observed(test.features_ND.roll(1, dims=1), test.logits_NC, test.labels_N)
    assert swap_head(turned, HEAD, FORGET) == [0.0]


def test_a_new_head_finds_a_class_that_the_body_tells_apart() -> None:
    sample, test = clusters(APART, 1), clusters(APART, 2)
    assert recover_with_new_head(sample, test, FORGET) == [1.0]
    assert recover_with_new_head(sample, test, [1, 3]) == [1.0, 1.0]
    merged = recover_with_new_head(clusters(MERGED, 1), clusters(MERGED, 2), FORGET)
    assert merged[0] < 0.8  # a coin between 0 and 3


def test_a_new_head_does_not_ask_what_the_old_one_was_or_how_features_are_scaled() -> None:
    sample, test = clusters(APART, 1, spread=0.6), clusters(APART, 2, spread=0.6)
    found = recover_with_new_head(sample, test, FORGET)
    assert 0.3 < found[0] < 1
    hidden = mask_head(HEAD, FORGET)
    assert recover_with_new_head(sample.under(hidden), test.under(hidden), FORGET) == found

    def scaled(part: Observed) -> Observed:
        return Observed(5 * part.features_ND + 7, part.logits_NC, part.labels_N)

    assert recover_with_new_head(scaled(sample), scaled(test), FORGET) == found


def test_a_head_with_little_penalty_is_a_logistic_regression() -> None:
    """Against scikit-learn's, on classes that overlap, and one index that no image has."""
    from sklearn.linear_model import LogisticRegression

    sample = clusters(APART, 1, spread=0.6)
    features_ND = sample.features_ND.double()
    weight_CD, bias_C = fit_logistic_head(features_ND, sample.labels_N, CLASSES)
    slow = LogisticRegression(C=STRENGTH, tol=1e-8, max_iter=1000)
    slow.fit(features_ND.numpy(), sample.labels_N.numpy())
    logits_NC = features_ND @ weight_CD.T + bias_C
    expected_NC = torch.from_numpy(slow.predict_proba(features_ND.numpy()))
    torch.testing.assert_close(logits_NC.softmax(1), expected_NC, atol=1e-3, rtol=0)


def test_a_head_with_little_penalty_finds_what_the_body_tells_apart() -> None:
    sample, test = clusters(APART, 1), clusters(APART, 2)
    assert recover_with_logistic_head(sample, test, [1, 3]) == [1.0, 1.0]
    assert recover_with_logistic_head(clusters(MERGED, 1), clusters(MERGED, 2), FORGET)[0] < 0.8
    # classes that were erased before have no image in the sample
    part = Observed(sample.features_ND[EACH:], sample.logits_NC[EACH:], sample.labels_N[EACH:])
    assert recover_with_logistic_head(part, test, FORGET) == [1.0]


def test_a_head_with_little_penalty_sees_what_a_ridge_overlooks() -> None:
    """The class differs by one weak feature, and another class by many strong ones."""
    places = torch.zeros(3, 40)
    places[1, :39], places[2, 39] = 1, 1

    def part(seed: int) -> Observed:
        generator = torch.Generator().manual_seed(seed)
        labels_N = torch.tensor([0] * 200 + [1] * 200 + [2] * 10)
        features_ND = places[labels_N] + 0.2 * torch.randn(410, 40, generator=generator)
        return Observed(features_ND, features_ND[:, :3], labels_N)

    weak = recover_with_new_head(part(1), part(2), [2])
    strong = recover_with_logistic_head(part(1), part(2), [2])
    assert strong[0] > weak[0] + 0.3


def body(sample: Observed, test: Observed) -> Body:
    return Body(HEAD, sample, test)


def test_the_original_head_fits_a_body_as_far_as_it_names_the_retained_classes() -> None:
    original = body(clusters(APART, 1), clusters(APART, 2))
    case = Case(tuple(FORGET), tuple(RETAIN), original)
    assert measure_fit(case, original) == 1.0
    merged = body(clusters(MERGED, 1), clusters(MERGED, 2))
    assert measure_fit(case, merged.put_under(mask_head(HEAD, FORGET))) == 1.0
    sample = clusters(APART, 1)
    turned = Observed(sample.features_ND.roll(1, dims=1), sample.logits_NC, sample.labels_N)
    assert measure_fit(case, body(turned, clusters(APART, 2))) == 0.0
    nothing = body(sample.of(-1), clusters(APART, 2))
    assert measure_fit(Case(tuple(FORGET), tuple(RETAIN), nothing), nothing) is None


def test_layer_probes_are_new_heads_on_each_block_and_their_mean() -> None:
    def part(seed: int) -> Observed:
        apart, merged = clusters(APART, seed), clusters(MERGED, seed)
        blocks = {"early": apart.features_ND, "late": merged.features_ND}
        return Observed(merged.features_ND, merged.logits_NC, merged.labels_N, blocks)

    seen = body(part(1), part(2))
    case = Case(tuple(FORGET), tuple(RETAIN), seen)
    rows = measure_blocks(case, seen)
    late = recover_with_new_head(clusters(MERGED, 1), clusters(MERGED, 2), FORGET)
    assert rows == {"early": [1.0], "late": late}
    assert measure_layers(case, seen) == [(1 + late[0]) / 2]
    # a mask has the same body, and without blocks there is no value
    assert measure_layers(case, seen.put_under(mask_head(HEAD, FORGET))) == [(1 + late[0]) / 2]
    plain = body(clusters(APART, 1), clusters(APART, 2))
    assert measure_layers(Case(tuple(FORGET), tuple(RETAIN), plain), plain) == [None]


def prototype(sample: Observed, test: Observed, seed: int = 0) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    return recover_with_prototypes(sample, test, forget=FORGET, retain=RETAIN, generator=generator)


def test_a_prototype_finds_a_class_that_the_body_tells_apart() -> None:
    assert prototype(clusters(APART, 1), clusters(APART, 2)) == [1.0]
    assert prototype(clusters(MERGED, 1), clusters(MERGED, 2))[0] < 0.7


def test_a_prototype_does_not_ask_what_the_forgotten_row_is() -> None:
    """So that neither mask can fool it."""
    sample, test = clusters(APART, 1, spread=0.6), clusters(APART, 2, spread=0.6)
    found = prototype(sample, test)
    hidden = mask_head(HEAD, FORGET)
    assert prototype(sample.under(hidden), test.under(hidden)) == found
    assert prototype(sample, test) == found
    assert prototype(sample, test, seed=1) != found


def test_areas_and_steps_of_a_relearning() -> None:
    curve = Relearning((0, 10, 20), ((0.0, 0.5), (0.5, 0.5), (1.0, 0.5)))
    assert curve.areas == [0.5, 0.5]
    assert curve.highest == [0.5, 0.5, 1.0]
    assert curve.find_step([0.5, 0.9]) == 10
    assert curve.find_step([0.9, 0.9]) == 20
    assert curve.find_step([2.0, 2.0]) == 20  # the cap
    assert curve.find_step([0.0, 0.9]) == 0


def relearnt(model: nn.Module) -> Relearning:
    data = clusters(APART, 3)
    test = clusters(APART, 4).of(3)

    def accuracy(learner: nn.Module) -> list[float]:
        with torch.no_grad():
            predictions_N: Tensor = learner(test.features_ND).argmax(dim=1)
        return [float((predictions_N == test.labels_N).double().mean())]

    return relearn(
        model, data.features_ND, data.labels_N, accuracy,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def test_relearning_works_on_a_copy_and_repeats_itself() -> None:
    model = nn.Sequential(nn.Linear(CLASSES, CLASSES)).eval()
    before = copy.deepcopy(model.state_dict())
    first = relearnt(model)
    assert first == relearnt(model)
    assert first.steps == tuple(range(0, 51, 5))
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_what_is_known_stays_and_what_is_masked_does_not_come_back() -> None:
    model = nn.Sequential(nn.Linear(CLASSES, CLASSES))
    with torch.no_grad():
        model[0].weight.copy_(8 * torch.eye(CLASSES))
        model[0].bias.zero_()
    assert relearnt(model).areas == [1.0]
    head = Head(model[0].weight.detach(), model[0].bias.detach())
    assert relearnt(with_head(model, mask_head(head, FORGET))).areas == [0.0]


def test_members_are_told_where_training_samples_are_surer() -> None:
    generator = torch.Generator().manual_seed(5)

    def answers(sureness: float, labels: Sequence[int]) -> Observed:
        labels_N = torch.tensor(labels).repeat_interleave(EACH)
        noise_NC = 0.1 * torch.rand(len(labels_N), CLASSES, generator=generator)
        logits_NC = sureness * nn.functional.one_hot(labels_N, CLASSES) + noise_NC
        return Observed(logits_NC, logits_NC, labels_N)

    train, test = answers(9, RETAIN), answers(1, RETAIN)
    like_train = infer_members(train, test, answers(9, FORGET), FORGET)
    assert (like_train.auc, like_train.members) == (1.0, [1.0])
    like_test = infer_members(train, test, answers(1, FORGET), FORGET)
    assert like_test.members == [0.0]
    blind = infer_members(answers(1, RETAIN), test, answers(1, FORGET), FORGET)
    assert abs(blind.auc - 0.5) < 0.15  # 120 against 120: a standard error of 0.037


def outputs(forgotten: Sequence[float], seed: int) -> Observed:
    """Classes 0 to 2 are sure of themselves; class 3 gives the logits `forgotten`, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.arange(CLASSES).repeat_interleave(EACH)
    means_CC = 6 * torch.eye(CLASSES)
    means_CC[3] = torch.tensor(forgotten)
    logits_NC = means_CC[labels_N] + 0.3 * torch.randn(len(labels_N), CLASSES, generator=generator)
    return Observed(logits_NC, logits_NC, labels_N)


UNSURE = [3.0, 1.0, 0.0, -5.0]  # what a model says that never saw class 3: class 0, hesitating


def test_discriminators_know_an_oracle_and_a_model_that_is_too_sure() -> None:
    oracles = [outputs(UNSURE, seed) for seed in range(3)]
    found = fit_discriminators(oracles, oracles, 3, RETAIN)
    assert len(found.fitted) >= 1
    assert recognise_class(found, outputs(UNSURE, 9)) > 0.95
    assert recognise_class(found, outputs([6.0, 0.0, 0.0, -5.0], 9)) < 0.2


def test_discriminators_do_not_look_at_the_forgotten_logit() -> None:
    oracles = [outputs(UNSURE, seed) for seed in range(3)]
    found = fit_discriminators(oracles, oracles, 3, RETAIN)
    plain, hidden = outputs(UNSURE, 9), outputs(UNSURE, 9)
    hidden.logits_NC[:, 3] = -1e4
    value = recognise_class(found, plain)
    assert recognise_class(found, hidden) == value


def test_without_a_neighbour_nothing_is_known() -> None:
    lost = outputs(UNSURE, 0).of(3)
    found = fit_discriminators([lost], [outputs(UNSURE, 0).of(2)], 3, RETAIN)
    assert str(recognise_class(found, lost)) == "nan"
