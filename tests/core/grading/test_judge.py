"""The whole battery on features made by hand: bodies that tell a class apart, and bodies that do
not."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from expunge.core.attacks.case import Case, Seen
from expunge.core.attacks.relearning import Relearning
from expunge.core.grading import battery
from expunge.core.grading.battery import choose_rows
from expunge.core.grading.judge import Judgement, judge, judge_alone
from expunge.core.heads import Head, Observed, mask_head, soft_mask_head

CLASSES, WIDTH = 5, 6
FORGET, RETAIN = (3,), (0, 1, 2, 4)
STEPS = (0, 25, 50)
# Where a body puts each class: the original tells class 3 apart, an oracle has it beside class 0.
# The last feature is large for every image, as the mean of a network's features is.
APART = 4 * torch.eye(CLASSES, WIDTH)
APART[:, -1] = 4
LOST = APART.clone()
LOST[3] = torch.tensor([3.6, 0, 0.4, 0, 0, 4])


def seen(places_CD: Tensor, curve: Sequence[float], seed: int, row: float = 1.0) -> Seen:
    """Imitate a model whose body puts the classes at `places_CD`, and whose head names the axes.

    What images of a class differ by is the same for every model, but for a little that `seed`
    draws. `row` scales the head's row of the forgotten class.
    """
    images, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    weight_CD = torch.eye(CLASSES, WIDTH)
    weight_CD[3] *= row
    head = Head(weight_CD, torch.zeros(CLASSES))

    def part(classes: Sequence[int], count: int) -> Observed:
        labels_N = torch.tensor(classes).repeat_interleave(count)
        noise_ND = 0.5 * torch.randn(len(labels_N), WIDTH, generator=images)
        wobble_ND = 0.01 * torch.randn(len(labels_N), WIDTH, generator=own)
        features_ND = places_CD[labels_N] + noise_ND + wobble_ND
        return Observed(features_ND, head.logits(features_ND), labels_N)

    return Seen(
        head=head,
        head_train=part(range(CLASSES), 100),
        forget_train=part(FORGET, 500),
        retain_train=part(RETAIN, 400),
        forget_test=part(FORGET, 1000),
        retain_test=part(RETAIN, 400),
        relearning=Relearning(STEPS, tuple((value,) for value in curve)),
    )


def an_oracle(seed: int) -> Seen:
    return seen(LOST, (0, 0, 0.04), seed, row=-1.0)


@pytest.fixture(scope="module")
def found() -> Judgement:
    original = seen(APART, (1, 1, 1), 0)
    codes_KD = APART[list(RETAIN)]
    mask = mask_head(original.head, FORGET)
    soft = soft_mask_head(original.head, codes_KD, FORGET)
    models = {
        "original": original,
        "mask": original.swap_head(mask, Relearning(STEPS, ((0,), (0,), (0,)))),
        "soft-mask": original.swap_head(soft, Relearning(STEPS, ((0,), (0,), (0.04,)))),
        "oracle": an_oracle(14),
    }
    case = Case(FORGET, RETAIN, original)
    oracles = [an_oracle(seed) for seed in (11, 12, 13)]
    return judge(case, models, oracles, ("original", "mask"), forget_error=0.95)


def test_every_control_gets_its_grade(found: Judgement) -> None:
    assert found.grades == {
        "original": "failed",
        "mask": "hidden",
        "soft-mask": "hidden",
        "oracle": "forgotten",
    }


def test_the_body_counts_and_the_outputs_do_not(found: Judgement) -> None:
    for metric in ("head_recovery", "head_recovery_logistic", "prototype_recovery"):
        assert found.counting[metric] == (True,)
    for metric in ("tow", "relearning"):  # the mask passes both
        assert found.counting[metric] == (False,)


def test_the_masks_pass_what_a_mask_can_fool(found: Judgement) -> None:
    for name in ("mask", "soft-mask"):
        assert found.checks[name]["tow"].passed
        for metric in ("head_swap", "head_recovery", "prototype_recovery"):
            assert found.values[name][metric] == found.values["original"][metric]
    assert found.checks["soft-mask"]["relearning"].passed


def test_without_oracles_masks_are_hidden_and_an_oracle_is_not() -> None:
    original = seen(APART, (1, 1, 1), 0)
    case = Case(FORGET, RETAIN, original)
    models = {
        "original": original,
        "mask": original.put_under(mask_head(original.head, FORGET)),
        "soft-mask": original.put_under(soft_mask_head(original.head, APART[list(RETAIN)], FORGET)),
        "oracle": an_oracle(14),
    }
    found = judge_alone(case, models, forget_error=0.95)
    assert found.grades == {
        "original": "failed",
        "mask": "hidden",
        "soft-mask": "hidden",
        "oracle": "suppressed",
    }
    assert found.held["original"] == (True,)
    assert found.oracles == ()


def test_a_body_on_which_the_original_head_does_not_work_is_not_asked_by_it() -> None:
    """All its features lie where the original has the class: the swap gives that by chance."""
    original = seen(APART, (1, 1, 1), 0)
    mute = seen(APART[[3] * CLASSES], (0, 0, 0), 1, row=-1.0)
    found = judge_alone(
        Case(FORGET, RETAIN, original), {"original": original, "mute": mute}, forget_error=0.95
    )
    assert found.values["mute"]["head_swap"] == pytest.approx([1], abs=0.01)
    assert (found.fits["mute"], found.held["mute"]) == (False, (False,))


def test_half_of_the_test_split_teaches_and_the_other_half_measures() -> None:
    test_N = labels(40, 41, 2, 2000, 60)
    generator = torch.Generator().manual_seed(0)
    rows = battery.choose_half_rows(test_N, forget=FORGET, retain=RETAIN, generator=generator)
    assert torch.bincount(test_N[rows["head_train"]]).tolist() == [20, 20, 1, 40, 20]
    assert torch.bincount(test_N[rows["forget_test"]]).tolist() == [0, 0, 0, 1000]
    assert not set(rows["head_train"].tolist()) & set(rows["forget_test"].tolist())
    with pytest.raises(ValueError, match="class 1 has 1 test images; two at least are needed"):
        battery.choose_half_rows(
            labels(9, 1, 9, 9, 9), forget=FORGET, retain=RETAIN, generator=generator
        )


def test_an_attacker_that_cannot_tell_members_is_not_reported(found: Judgement) -> None:
    assert all(own["membership"] == [None] for own in found.oracles)
    assert "membership" not in found.comparisons


def test_distances_are_zero_between_equal_models() -> None:
    original, same = seen(APART, (1, 1, 1), 0), an_oracle(11)
    case = Case(FORGET, RETAIN, original)
    reference = battery.build_references(case, [same, same, same])[0]
    values = battery.measure_against(case, same, reference)
    assert values["output_distance"] == values["activation_distance"] == [0]
    assert values["tow"] == [1]


def test_each_reference_leaves_one_oracle_out() -> None:
    original = seen(APART, (1, 1, 1), 0)
    oracles = [an_oracle(seed) for seed in (11, 12, 13)]
    found = battery.build_references(Case(FORGET, RETAIN, original), oracles)
    left_out = [[any(o is own for o in r.oracles) for own in oracles] for r in found]
    assert left_out == [[False, True, True], [True, False, True], [True, True, False]]


def labels(*counts: int) -> Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def test_rows_are_drawn_by_class() -> None:
    train_N, test_N = labels(3000, 3000, 500, 3000, 30), labels(1500, 1500, 1500, 1500, 20)

    def chosen(seed: int) -> battery.Rows:
        generator = torch.Generator().manual_seed(seed)
        return choose_rows(train_N, test_N, forget=FORGET, retain=RETAIN, generator=generator)

    rows = chosen(0)
    assert torch.bincount(train_N[rows.head_train]).tolist() == [60, 60, 20, 60, 20]
    assert torch.bincount(train_N[rows.relearn_train]).tolist() == [112, 112, 112, 50, 30]
    assert torch.bincount(train_N[rows.retain_train]).tolist() == [500, 500, 500, 0, 30]
    assert torch.bincount(test_N[rows.forget_test]).tolist() == [0, 0, 0, 1000]
    assert torch.bincount(test_N[rows.relearn_test]).tolist() == [0, 0, 0, 200]
    assert set(rows.relearn_test.tolist()) <= set(rows.forget_test.tolist())
    assert len(set(rows.head_train.tolist())) == len(rows.head_train)
    assert torch.equal(rows.head_train, chosen(0).head_train)
    assert not torch.equal(rows.head_train, chosen(1).head_train)


def test_a_class_without_images_cannot_be_looked_for() -> None:
    with pytest.raises(ValueError, match="class 3 has no image to draw"):
        choose_rows(
            labels(9, 9, 9, 0, 9), labels(9, 9, 9, 9, 9),
            forget=FORGET, retain=RETAIN, generator=torch.Generator(),
        )  # fmt: skip
