"""An epoch's draws, the augmentation, the learning rate and the loop itself."""

import math

import pytest
import torch
from torch import Tensor, nn

from expunge.core.codes import draw_codes
from expunge.core.epoch import (
    PADDING,
    Batch,
    Inputs,
    batch_bounds,
    compute_learning_rate,
    crop_and_flip,
    derive_seed,
    draw_epoch,
    flip,
    normalise,
    split_evenly,
    train_epoch,
)
from expunge.errors import UserError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_crop_and_flip(images_NHWC: Tensor, shifts_N2: Tensor, flips_N: Tensor) -> Tensor:
    """One sample, one pixel at a time."""
    count, height, width, _ = images_NHWC.shape
    out_NHWC = torch.zeros_like(images_NHWC)
    for n in range(count):
        for y in range(height):
            for x in range(width):
                row = y + int(shifts_N2[n, 0]) - PADDING
                column = (width - 1 - x if flips_N[n] else x) + int(shifts_N2[n, 1]) - PADDING
                if 0 <= row < height and 0 <= column < width:
                    out_NHWC[n, y, x] = images_NHWC[n, row, column]
    return out_NHWC


@pytest.mark.parametrize("shape", [(12, 7, 9, 3), (5, 8, 8, 1)])
def test_crop_and_flip_equals_the_slow_loop(shape: tuple[int, ...]) -> None:
    images_NHWC = torch.randint(256, shape, dtype=torch.uint8, generator=generator())
    draws = draw_epoch(shape[0], 0.1, generator(1))
    cropped = crop_and_flip(images_NHWC, draws.shifts_N2, draws.flips_N)
    assert cropped.dtype == torch.uint8
    assert torch.equal(cropped, slow_crop_and_flip(images_NHWC, draws.shifts_N2, draws.flips_N))


def test_no_shift_and_no_flip_change_nothing() -> None:
    images_NHWC = torch.randint(256, (3, 6, 6, 3), dtype=torch.uint8, generator=generator())
    still = torch.full((3, 2), PADDING)
    assert torch.equal(
        crop_and_flip(images_NHWC, still, torch.zeros(3, dtype=torch.bool)), images_NHWC
    )
    flips_N = torch.tensor([True, False, True])
    assert torch.equal(flip(images_NHWC, flips_N), slow_crop_and_flip(images_NHWC, still, flips_N))


def test_normalised_images_are_channels_last() -> None:
    images_NHWC = torch.randint(256, (2, 5, 4, 3), dtype=torch.uint8, generator=generator())
    mean_C, std_C = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    found = normalise(images_NHWC, mean_C, std_C)
    assert found.shape == (2, 3, 5, 4)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert float(found[1, 2, 4, 3]) == pytest.approx(
        (int(images_NHWC[1, 4, 3, 2]) / 255 - 0.3) / 0.6
    )


def test_an_epochs_draws_depend_on_seed_and_epoch_alone() -> None:
    first = draw_epoch(20, 0.3, generator(derive_seed(5, "epoch", 2)))
    torch.rand(7)  # the default generator plays no part
    again = draw_epoch(20, 0.3, generator(derive_seed(5, "epoch", 2)))
    other = draw_epoch(20, 0.3, generator(derive_seed(5, "epoch", 3)))
    assert torch.equal(first.order_N, again.order_N)
    assert torch.equal(first.shifts_N2, again.shifts_N2)
    assert torch.equal(first.replaced_N, again.replaced_N)
    assert not torch.equal(first.order_N, other.order_N)
    assert sorted(first.order_N.tolist()) == list(range(20))
    assert int(first.shifts_N2.min()) >= 0
    assert int(first.shifts_N2.max()) <= 2 * PADDING


def test_seeds_differ_by_purpose_and_fit_a_generator() -> None:
    seeds = {derive_seed(s, p, e) for s in (0, 2**63 - 1) for p in "ab" for e in range(10)}
    assert len(seeds) == 40
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(("count", "size"), [(129, 128), (200, 32), (5, 8), (64, 32), (7, 1)])
def test_batches_cover_the_epoch_evenly(count: int, size: int) -> None:
    bounds = batch_bounds(count, size)
    sizes = [stop - start for start, stop in bounds]
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(count))
    assert len(bounds) == math.ceil(count / size)
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1


def test_shares_are_disjoint_and_whole() -> None:
    assert split_evenly(7, 3) == [(0, 2), (2, 4), (4, 7)]
    assert split_evenly(1, 2) == [(0, 0), (0, 1)]


def test_cosine_schedule_values() -> None:
    rates = [compute_learning_rate(step, 10, 0.4, "cosine") for step in range(11)]
    assert rates[0] == 0.4
    assert rates[5] == pytest.approx(0.2)
    assert rates[2] == pytest.approx(0.2 * (1 + math.cos(0.2 * math.pi)))
    assert rates[10] == pytest.approx(0.0, abs=1e-17)
    assert rates == sorted(rates, reverse=True)
    assert compute_learning_rate(9, 10, 0.4, "none") == 0.4


class Recorder(nn.Module):
    """A linear classifier that keeps what it was shown."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 4 * 4, classes)
        self.seen: list[Tensor] = []

    def forward(self, images_NCHW: Tensor) -> Tensor:
        self.seen.append(images_NCHW.clone())
        logits: Tensor = self.head(images_NCHW.flatten(1))
        return logits


def make_inputs(classes: int = 3) -> Inputs:
    codes_KCHW = draw_codes(range(classes), classes, (3, 4, 4), generator(9))
    return Inputs(torch.full((3,), 0.5), torch.full((3,), 0.1), codes_KCHW, torch.arange(classes))


def make_batches(count: int, t_mix: float, size: int = 4) -> list[Batch]:
    draws = draw_epoch(count, t_mix, generator(3))
    # 0 or 255, so that a normalised image (-5 or 5) is never a code (0 to 1)
    images_NHWC = 255 * torch.randint(2, (count, 4, 4, 3), generator=generator(4))
    labels_N = torch.randint(3, (count,), generator=generator(5))
    return [
        Batch(
            images_NHWC[draws.order_N[start:stop]].to(torch.uint8),
            labels_N[draws.order_N[start:stop]],
            draws.replaced_N[start:stop],
            stop - start,
        )
        for start, stop in batch_bounds(count, size)
    ]


def run(model: nn.Module, batches: list[Batch], rate: float = 0.01, **options: object) -> Tensor:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4)
    rates = [rate] * len(batches)
    return train_epoch(model, optimizer, batches, make_inputs(), rates=rates, **options)  # type: ignore[arg-type]


def test_no_mixing_never_shows_a_code() -> None:
    model = Recorder()
    sums = run(model, make_batches(18, t_mix=0.0))
    assert bool((torch.cat(model.seen).abs() > 4).all())
    assert sums[1] == sums[3] == 18


def test_full_mixing_shows_each_labels_code_only() -> None:
    model, batches = Recorder(), make_batches(18, t_mix=1.0)
    sums = run(model, batches)
    codes_KCHW = make_inputs().codes_KCHW
    for seen_NCHW, batch in zip(model.seen, batches, strict=True):
        assert torch.equal(seen_NCHW, codes_KCHW[batch.labels_N])
    assert sums[1:].tolist() == [18, 0, 0]


def test_the_steps_are_plain_sgd_on_the_mean_loss() -> None:
    torch.manual_seed(0)
    model, slow = Recorder().double(), Recorder().double()
    slow.load_state_dict(model.state_dict())
    batches = make_batches(10, t_mix=0.5)
    inputs = make_inputs()
    wide = Inputs(
        *(getattr(inputs, n).double() for n in ("mean_C", "std_C", "codes_KCHW")), torch.arange(3)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4)
    rates = [0.1, 0.05, 0.02]
    train_epoch(model, optimizer, batches, wide, rates=rates)
    velocity = [torch.zeros_like(p) for p in slow.parameters()]
    for batch, rate in zip(batches, rates, strict=True):
        losses = []
        for n, label in enumerate(batch.labels_N):
            pixels_CHW = (batch.images_NHWC[n].permute(2, 0, 1).double() / 255 - 0.5) / 0.1
            shown = wide.codes_KCHW[label] if batch.replaced_N[n] else pixels_CHW
            losses.append(-torch.log_softmax(slow(shown[None]), dim=1)[0, label])
        loss = sum(losses, torch.zeros(())) / len(losses)
        gradients = torch.autograd.grad(loss, list(slow.parameters()))
        with torch.no_grad():
            for p, v, g in zip(slow.parameters(), velocity, gradients, strict=True):
                v.mul_(0.9).add_(g + 5e-4 * p)
                p.sub_(rate * v)
    for fast, reference in zip(model.parameters(), slow.parameters(), strict=True):
        # 1e-6: the normalisation of a float64 run starts from float32 pixels
        assert torch.allclose(fast, reference, atol=1e-6, rtol=0)


def test_unequal_shares_average_to_the_whole_batchs_gradient() -> None:
    torch.manual_seed(0)
    model = Recorder()
    (batch,) = make_batches(7, t_mix=0.3, size=7)
    gradients: list[list[Tensor]] = []
    for low, high in [(0, 7), (0, 2), (2, 7)]:
        share = Batch(
            batch.images_NHWC[low:high], batch.labels_N[low:high], batch.replaced_N[low:high], 7
        )
        copy = Recorder()
        copy.load_state_dict(model.state_dict())
        run(copy, [share], processes=1 if high - low == 7 else 2)
        gradients.append([p.grad for p in copy.parameters() if p.grad is not None])
    for whole, first, second in zip(*gradients, strict=True):
        assert torch.allclose(whole, (first + second) / 2, atol=1e-6)


def test_every_step_is_told() -> None:
    told: list[int] = []
    run(Recorder(), make_batches(18, 0.1), on_step=lambda step, loss: told.append(step))
    assert told == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("broken", [1, 57])
def test_a_loss_that_is_not_finite_stops_the_run(broken: int) -> None:
    class Breaks(Recorder):
        def forward(self, images_NCHW: Tensor) -> Tensor:
            logits = super().forward(images_NCHW)
            return logits * torch.nan if len(self.seen) == broken + 1 else logits

    batches = make_batches(120, 0.1, size=2)
    message = (
        rf"the loss is nan at epoch 3, step {broken + 1} of 60, learning rate 0.25; choose a lower"
    )
    with pytest.raises(UserError, match=message):
        run(Breaks(), batches, rate=0.25, epoch=3)
