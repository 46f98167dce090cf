"""Align on small networks: the noise, the loss by hand, and what a repair leaves of a class."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from expunge.core.rules.align import (
    KEEP,
    LEAST_BATCH,
    MOST_BATCH,
    SHARE,
    STEPS,
    Part,
    Repair,
    align,
    disturb,
    plan_steps,
)

CLASSES, WIDTH, GONE, BATCH = 5, 12, 3, 32
RETAIN = tuple(index for index in range(CLASSES) if index != GONE)


def make_part(seed: int = 0, *, bias: bool = True) -> Part:
    """Return a stage with a norm in it, and a head, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        stage = nn.Sequential(nn.Linear(WIDTH, 64), nn.BatchNorm1d(64), nn.ReLU())
        return Part(stage.eval(), nn.Linear(64, CLASSES, bias=bias).eval())


def draw(classes: tuple[int, ...], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return what enters the stage: each class lies around a corner of its own."""
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.tensor(classes)[torch.arange(count) % len(classes)]
    corners_CE = 2 * torch.eye(CLASSES, WIDTH)
    return corners_CE[labels_N] + 0.3 * torch.randn(count, WIDTH, generator=generator), labels_N


def yield_batches(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of the retained classes, and many more than are asked for."""
    for step in range(steps):
        yield draw(RETAIN, BATCH, 100 + step)
    raise AssertionError("a batch beyond the number of steps was drawn")


@pytest.fixture(scope="module")
def teacher() -> Part:
    """Train a part on every class."""
    part = make_part()
    learner = nn.ModuleList([part.stage, part.head])
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
    learner.train()
    for step in range(60):
        entering, labels_N = draw(tuple(range(CLASSES)), 100, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(part.infer(entering), labels_N).backward()
        optimizer.step()
    learner.eval()
    return part


def measure(part: Part, classes: tuple[int, ...]) -> float:
    entering, labels_N = draw(classes, 200, 9000)
    with torch.no_grad():
        return float((part.infer(entering).argmax(dim=1) == labels_N).float().mean())


def state(part: Part) -> dict[str, Tensor]:
    return {
        **part.stage.state_dict(),
        **{f"head.{k}": v for k, v in part.head.state_dict().items()},
    }


@pytest.mark.parametrize(("epochs", "images"), [(1, 10), (20, 1000), (7, 12345), (20, 10**6)])
def test_a_repair_costs_its_share_of_a_training_at_most(epochs: int, images: int) -> None:
    plan = plan_steps(epochs, images)
    whole = SHARE * epochs * images
    assert plan.steps == 1 or plan.steps * plan.batch <= whole
    assert (plan.steps + 1) * plan.batch > whole
    assert LEAST_BATCH <= plan.batch <= MOST_BATCH
    # small batches where few images would give few steps
    assert plan.steps >= STEPS or plan.batch == LEAST_BATCH


@pytest.mark.parametrize("keep", [1.0, 0.4, 0.0])
def test_noise_takes_the_place_of_weights_at_their_scale(keep: float) -> None:
    part = make_part()
    before = copy.deepcopy(state(part))
    disturb(part, keep, torch.Generator().manual_seed(11))  # not the seed of the weights
    for name, value in state(part).items():
        if value.dim() < 2:  # biases and norms
            assert torch.equal(value, before[name]), name
            continue
        pair = torch.stack([before[name].flatten(), value.flatten()])
        assert float(torch.corrcoef(pair)[0, 1]) == pytest.approx(keep, abs=0.15)
        torch.testing.assert_close(value.std(), before[name].std(), rtol=0.1, atol=0)


def test_the_loss_of_the_first_step_is_the_formula(teacher: Part) -> None:
    """By hand, in float64, on a student that is disturbed in the same way."""
    student, other = copy.deepcopy(teacher), copy.deepcopy(teacher)
    entering, labels_N = draw(RETAIN, BATCH, 5)
    found = align(teacher, student, [(entering, labels_N)], Repair((GONE,), RETAIN, 1, seed=7))
    disturb(other, KEEP, torch.Generator().manual_seed(7))
    other.stage.train()
    p_NC = teacher.infer(entering).double().detach().exp()
    q_NC = other.infer(entering).double().detach().exp()
    p_NC[:, GONE], q_NC[:, GONE] = 0, 0
    p_NC, q_NC = p_NC / p_NC.sum(dim=1, keepdim=True), q_NC / q_NC.sum(dim=1, keepdim=True)
    wanted = 0.0
    for p_C, q_C, label in zip(p_NC, q_NC, labels_N, strict=True):
        wanted += sum(float(p_C[k] * (p_C[k] / q_C[k]).log()) for k in RETAIN)
        wanted -= float(q_C[label].log())
    assert found == pytest.approx(wanted / BATCH, rel=1e-4)


def test_the_others_come_back_and_the_class_does_not(teacher: Part) -> None:
    before, student = copy.deepcopy(state(teacher)), copy.deepcopy(teacher)
    assert measure(teacher, (GONE,)) > 0.95
    align(teacher, student, yield_batches(150), Repair((GONE,), RETAIN, 150))
    assert measure(student, RETAIN) > 0.95
    assert measure(student, (GONE,)) == 0
    for name, value in state(teacher).items():
        assert torch.equal(value, before[name]), name
    assert not student.stage.training
    # the original's head no longer finds it on the features either
    assert measure(Part(student.stage, teacher.head), (GONE,)) < 0.8
    entering, _ = draw(RETAIN, 200, 9001)
    with torch.no_grad():
        assert float(student.infer(entering)[:, GONE].mean()) == pytest.approx(-5, abs=1)


def test_the_same_seed_gives_the_same_bytes(teacher: Part) -> None:
    made = []
    for seed in (0, 0, 1):
        student = copy.deepcopy(teacher)
        align(teacher, student, yield_batches(5), Repair((GONE,), RETAIN, 5, seed=seed))
        made.append(state(student))
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not torch.equal(made[0]["head.weight"], made[2]["head.weight"])


def test_a_head_without_a_bias_gets_a_low_row_too() -> None:
    original = make_part(bias=False)
    student = copy.deepcopy(original)
    align(original, student, yield_batches(20), Repair((1, GONE), (0, 2, 4), 20))
    entering, _ = draw(RETAIN, 200, 9002)
    with torch.no_grad():
        logits_NC = student.infer(entering)
    assert float(logits_NC[:, [1, GONE]].max()) < float(logits_NC[:, [0, 2, 4]].max(dim=1)[0].min())


def test_values_that_are_no_numbers_are_refused(teacher: Part) -> None:
    entering, labels_N = draw(RETAIN, BATCH, 5)
    with pytest.raises(ValueError, match="the loss of the repair is nan at rate"):
        align(
            teacher,
            copy.deepcopy(teacher),
            [(entering * float("inf"), labels_N)],
            Repair((GONE,), RETAIN, 1),
        )
