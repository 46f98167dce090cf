"""A training while it runs: model, optimiser, codes and data on their devices.

accelerate places the model, casts to the precision and averages gradients over processes; what is
drawn and what a step does is `expunge.core.epoch`'s.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from expunge.config import TrainConfig
from expunge.core.epoch import (
    Inputs,
    batch_bounds,
    compute_learning_rate,
    derive_seed,
    draw_epoch,
    normalise,
    train_epoch,
)
from expunge.core.metrics import class_counts, predict
from expunge.data.batches import Share, Split, choose_augmentation
from expunge.formats.dataset import DatasetInfo
from expunge.training.checkpoints import Checkpoint

# Images evaluated at once: enough to fill a device, without the memory that large images take.
EVAL_BATCH, EVAL_PIXELS = 256, 256 * 64 * 64


@dataclass
class Session:
    """See the module. `recipe` is everything that the weights depend on, as JSON."""

    config: TrainConfig
    info: DatasetInfo
    recipe: dict[str, Any]
    accelerator: Accelerator
    precision: str
    model: nn.Module  # as accelerate wraps it for training
    module: nn.Module  # the same, bare
    optimizer: torch.optim.Optimizer
    inputs: Inputs
    train_split: Split
    test_split: Split

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def device_name(self) -> str:
        """The device, in words."""
        device = self.accelerator.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    @property
    def _share(self) -> Share:
        return Share(self.accelerator.process_index, self.accelerator.num_processes)

    def wait(self) -> None:
        """Wait until every process is here."""
        self.accelerator.wait_for_everyone()

    def run_epoch(
        self, epoch: int, on_step: Callable[[int, int, Tensor], None]
    ) -> dict[str, float]:
        """Train and evaluate one epoch, counted from 1, and return its metrics."""
        config, share = self.config, self._share
        # For dropout and its kin, which draw from the default generator; each process has its own
        # draws, or two images at the same place of two shares would lose the same units.
        torch.manual_seed(derive_seed(config.seed, f"layers-{share.rank}", epoch))
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "epoch", epoch))
        draws = draw_epoch(len(self.train_split.labels_N), config.t_mix, generator)
        bounds = batch_bounds(len(self.train_split.labels_N), config.batch_size)
        steps = len(bounds)
        rates = [
            compute_learning_rate(
                step, steps * config.epochs, config.learning_rate, config.schedule
            )
            for step in range((epoch - 1) * steps, epoch * steps)
        ]
        augment = choose_augmentation(config.augment, self.info)
        started = time.perf_counter()
        sums = train_epoch(
            self.model,
            self.optimizer,
            self.train_split.train_batches(draws, bounds, augment, share),
            self.inputs,
            rates=rates,
            backward=self.accelerator.backward,
            processes=share.processes,
            on_step=lambda step, loss: on_step(step, steps, loss),
            epoch=epoch,
        )
        # The one look at the sums, since each look waits for the device.
        loss, samples, right, clean = self.accelerator.reduce(sums, "sum").tolist()
        seconds = time.perf_counter() - started
        metrics = {
            "train_loss": loss / samples,
            "code_accuracy": self._measure_code_accuracy(),
            "test_accuracy": self.measure_test_accuracy()[0],
            "learning_rate": rates[-1],
            "images_per_second": samples / seconds,
            "epoch_seconds": time.perf_counter() - started,
        }
        return {**metrics, "train_accuracy": right / clean} if clean else metrics

    def measure_test_accuracy(self) -> tuple[float, list[float | None]]:
        """Return the accuracy on the test images of the classes that take part, and each class's.

        A class without test images has None.
        """
        classes = len(self.info.class_names)
        _, height, width = self.info.input_shape
        size = max(1, min(EVAL_BATCH, EVAL_PIXELS // (height * width)))
        labels: list[Tensor] = []

        def yield_images() -> Iterator[Tensor]:
            for images_NHWC, labels_N in self.test_split.eval_batches(size, self._share):
                labels.append(labels_N)
                yield normalise(images_NHWC, self.inputs.mean_C, self.inputs.std_C)

        # A process may have no image of a short test split; it still takes part in the sum.
        counts = torch.zeros(2, classes, dtype=torch.int64, device=self.accelerator.device)
        low, high = self._share.within(0, len(self.test_split.labels_N))
        if high > low:
            # The bare module: the wrapped one exchanges its buffers at each batch, and not every
            # process may have as many batches.
            predictions_N = predict(self.module, yield_images()).argmax(dim=-1)
            counts = class_counts(predictions_N, torch.cat(labels), classes)
        right, samples = self.accelerator.reduce(counts, "sum").tolist()
        retained = [index for index in range(classes) if index not in self.config.without]
        overall = sum(right[i] for i in retained) / sum(samples[i] for i in retained)
        return overall, [r / n if n else None for r, n in zip(right, samples, strict=True)]

    def _measure_code_accuracy(self) -> float:
        # In the memory layout of the images: another one may round differently.
        codes_KCHW = self.inputs.codes_KCHW.contiguous(memory_format=torch.channels_last)
        predictions_K = predict(self.module, torch.split(codes_KCHW, EVAL_BATCH)).argmax(dim=-1)
        return float((predictions_K == self.inputs.classes_K).float().mean())

    def make_checkpoint(self, epoch: int, history: list[dict[str, float]]) -> Checkpoint:
        """Return everything that `restore` needs.

        No generator's state is in it: random numbers are drawn anew from seed and epoch.
        """
        state = self.optimizer.state
        # By name, where torch counts parameters: a name still fits after a change of the order.
        momentum = {
            name: state[parameter]["momentum_buffer"]
            for name, parameter in self.module.named_parameters()
            if state.get(parameter, {}).get("momentum_buffer") is not None
        }
        scaler = self.accelerator.scaler
        extra = {"history": history, "scaler": scaler.state_dict() if scaler else {}}
        return Checkpoint(epoch, self.module.state_dict(), momentum, extra)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to the end of the checkpoint's epoch."""
        self.module.load_state_dict(checkpoint.model)
        for name, parameter in self.module.named_parameters():
            if name in checkpoint.momentum:
                # In the parameter's memory layout, which the file does not keep: sums over another
                # layout round differently, and the weights would not be the same to the bit.
                buffer = torch.empty_like(parameter).copy_(checkpoint.momentum[name])
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        if self.accelerator.scaler and checkpoint.extra["scaler"]:
            self.accelerator.scaler.load_state_dict(checkpoint.extra["scaler"])
