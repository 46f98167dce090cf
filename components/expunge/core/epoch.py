"""One epoch of training with mnemonic codes: what is drawn, and what is done with it.

Shapes: N samples, K codes, C channels, H height, W width, S steps. Everything random in an epoch
is drawn before it starts, for the whole of it, from one generator: so an epoch depends on its
number and the seed alone, and several processes that share its batches see what one would.
Source of the method: Yamashita et al. (ACML 2024), section 3.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional

from expunge.core.codes import draw_replacements, replace_by_codes
from expunge.errors import UserError

PADDING = 4  # pixels: the usual crop of 32 px images (He et al., 2016, section 4.2)
# Steps between two looks at the losses: each look waits for the device, so not at every step.
LOOK_EVERY = 50


@dataclass(frozen=True)
class EpochDraws:
    """An epoch's random numbers, by position in the epoch; `order_N` holds the samples' rows."""

    order_N: Tensor
    shifts_N2: Tensor  # the crop's offset down and right, 0 to 2 * PADDING
    flips_N: Tensor
    replaced_N: Tensor  # by a code
    seeds_N: Tensor  # for what is drawn sample by sample: random resized crops

    def to(self, device: torch.device) -> "EpochDraws":
        """Return the same numbers on another device."""
        return EpochDraws(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass(frozen=True)
class Batch:
    """This process's share of a batch; `total` counts the samples of all processes together."""

    images_NHWC: Tensor  # uint8, augmented
    labels_N: Tensor
    replaced_N: Tensor
    total: int


@dataclass(frozen=True)
class Inputs:
    """What turns a batch into the model's input: normalisation by channel, and the codes."""

    mean_C: Tensor
    std_C: Tensor
    codes_KCHW: Tensor
    classes_K: Tensor


def derive_seed(seed: int, stream: str, epoch: int = 0) -> int:
    """Derive a seed of its own for each purpose and epoch, from 0 to 2**63 - 1."""
    # A hash and no sum: seeds 0 and 1 would share the streams of neighbouring epochs.
    digest = hashlib.sha256(f"{seed}/{stream}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw_epoch(count: int, t_mix: float, generator: torch.Generator) -> EpochDraws:
    """Draw all random numbers of an epoch over `count` samples.

    All are drawn, whichever of them the augmentation then uses, so that one setting does not shift
    the draws of another. The order of the fields is the order of the draws.
    """
    return EpochDraws(
        order_N=torch.randperm(count, generator=generator),
        shifts_N2=torch.randint(2 * PADDING + 1, (count, 2), generator=generator),
        flips_N=torch.rand(count, generator=generator) < 0.5,
        replaced_N=draw_replacements(count, t_mix, generator),
        seeds_N=torch.randint(2**62, (count,), generator=generator),
    )


def split_evenly(count: int, parts: int) -> list[tuple[int, int]]:
    """Return (start, stop) of each part of 0..count; sizes differ by one at most."""
    edges = [part * count // parts for part in range(parts + 1)]
    return list(itertools.pairwise(edges))


def batch_bounds(count: int, batch_size: int) -> list[tuple[int, int]]:
    """Return (start, stop) of each batch: as few as `batch_size` allows, of even sizes.

    A small remainder as a batch of its own would spoil BatchNorm's statistics.
    """
    return split_evenly(count, math.ceil(count / batch_size))


def compute_learning_rate(step: int, steps: int, base: float, schedule: str) -> float:
    """Return the rate of a step: `base`, or base * (1 + cos(pi * step / steps)) / 2.

    The cosine is for the schedule "cosine", the constant for "none".

    It is `base` at step 0 and would be 0 at step `steps`, the first one after the run.
    """
    if schedule == "none":
        return base
    return base * (1 + math.cos(math.pi * step / steps)) / 2


def crop_and_flip(images_NHWC: Tensor, shifts_N2: Tensor, flips_N: Tensor) -> Tensor:
    """Shift each image within a border of PADDING zeros, then mirror it where `flips_N` is True."""
    count, height, width, channels = images_NHWC.shape
    padding = (0, 0, PADDING, PADDING, PADDING, PADDING)
    padded_NHWC = functional.pad(images_NHWC, padding)
    rows_NH = shifts_N2[:, :1] + torch.arange(height, device=images_NHWC.device)
    columns_NW = shifts_N2[:, 1:] + torch.arange(width, device=images_NHWC.device)
    # a mirror is the same gather with its columns read backwards
    columns_NW = torch.where(flips_N[:, None], columns_NW.flip(1), columns_NW)
    lines_NH = torch.arange(count, device=images_NHWC.device)[:, None] * padded_NHWC.shape[1]
    pixels_NHW = (lines_NH + rows_NH)[:, :, None] * padded_NHWC.shape[2] + columns_NW[:, None]
    # One gather for all images. Indexing them one by one would start N small kernels on a GPU.
    chosen = padded_NHWC.reshape(-1, channels).index_select(0, pixels_NHW.flatten())
    return chosen.view(count, height, width, channels)


def flip(images_NHWC: Tensor, flips_N: Tensor) -> Tensor:
    """Mirror each image where `flips_N` is True."""
    return torch.where(flips_N[:, None, None, None], images_NHWC.flip(2), images_NHWC)


def normalise(images_NHWC: Tensor, mean_C: Tensor, std_C: Tensor) -> Tensor:
    """Return (pixels / 255 - mean) / std of uint8 images, as images_NCHW in channels-last."""
    # A permuted view of N x H x W x C is the channels-last layout already: nothing is copied.
    return ((images_NHWC.float() / 255 - mean_C) / std_C).permute(0, 3, 1, 2)


def prepare_images(batch: Batch, inputs: Inputs) -> Tensor:
    """Return a batch as images_NCHW for the model: normalised, and with codes where it says so."""
    return replace_by_codes(
        normalise(batch.images_NHWC, inputs.mean_C, inputs.std_C),
        batch.labels_N,
        inputs.codes_KCHW,
        inputs.classes_K,
        replaced_N=batch.replaced_N,
    )


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    inputs: Inputs,
    *,
    rates: Sequence[float],
    backward: Callable[[Tensor], None] = Tensor.backward,
    processes: int = 1,
    on_step: Callable[[int, Tensor], None] = lambda step, loss: None,
    epoch: int = 1,
) -> Tensor:
    """Take one step for each batch, at the rates given; one pass over the batches.

    A step descends the mean cross-entropy over the batch of all processes together.

    Args:
        model: the classifier, which is left in training mode.
        optimizer: its learning rate is set at each step.
        batches: this process's share of each batch.
        inputs: normalisation and codes, on the model's device.
        rates: the learning rate of each step.
        backward: has to leave in `.grad` the mean over the processes of what each computed, as
            distributed data parallel does. A share of n samples weighs processes * n / total.
        processes: how many share the batches.
        on_step: gets the step and its loss, still on the device.
        epoch: what an error calls this epoch.

    Returns:
        float64, shape 4: the sum of the losses and the number of samples, then the samples
        classified right and the samples, both of those that no code replaced.

    Raises:
        UserError: a loss is not finite.
    """
    model.train()
    sums = torch.zeros(4, dtype=torch.float64, device=inputs.codes_KCHW.device)
    losses: list[Tensor] = []
    # strict, because a missing batch would leave the others at the wrong rates
    for step, (batch, rate) in enumerate(zip(batches, rates, strict=True)):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        logits_NC = model(prepare_images(batch, inputs))
        loss = functional.cross_entropy(logits_NC, batch.labels_N, reduction="sum")
        backward(loss * (processes / batch.total))
        optimizer.step()
        # Sums stay on the device: reading one here would wait for the step to finish.
        with torch.no_grad():
            clean_N = ~batch.replaced_N
            right_N = clean_N & (logits_NC.argmax(dim=-1) == batch.labels_N)
            loss = loss.detach()
            samples = torch.full_like(loss, len(batch.labels_N))
            sums += torch.stack([loss, samples, right_N.sum(), clean_N.sum()])
            losses.append(loss / len(batch.labels_N))
        on_step(step, losses[-1])
        if len(losses) == LOOK_EVERY:
            _check_finite(losses, step, rates, epoch)
            losses.clear()
    _check_finite(losses, len(rates) - 1, rates, epoch)
    return sums


def _check_finite(losses: Sequence[Tensor], last: int, rates: Sequence[float], epoch: int) -> None:
    if not losses:
        return
    # one transfer from the device for all of them
    values = torch.stack(list(losses)).tolist()
    for step, value in enumerate(values, start=last - len(values) + 1):
        if not math.isfinite(value):
            raise UserError(
                f"training diverged: the loss is {value} at epoch {epoch}, step {step + 1} of "
                f"{len(rates)}, learning rate {rates[step]:.4g}; choose a lower learning_rate, "
                "or precision fp32 if it was fp16"
            )
