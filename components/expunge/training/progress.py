"""Progress of a training: a bar on a terminal, elsewhere one log line an epoch."""

import logging
import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

if TYPE_CHECKING:
    from torch import Tensor

# The terminal's device, for a process whose own output is piped.
TTY = "EXPUNGE_TTY"
REFRESH = 0.25  # seconds between two looks at a loss, each of which waits for the device

logger = logging.getLogger(__name__)


class Progress:
    """A bar over epochs; `shown=False` is for the processes beside the first."""

    def __init__(self, epochs: int, done: int, *, shown: bool = True) -> None:
        self.epochs, self.shown = epochs, shown
        self.opened: TextIO | None = None
        self.text, self.refreshed = "", 0.0
        target = self._open_terminal() if shown else None
        self.bar = None
        if target is not None:
            # A terminal may not know its width; tqdm would fit the bar into nothing.
            wide = os.get_terminal_size(target.fileno()).columns > 0
            self.bar = tqdm(
                total=epochs, initial=done, file=target, unit="epoch", dynamic_ncols=wide
            )

    def _open_terminal(self) -> TextIO | None:
        device = os.environ.get(TTY)
        if device:
            try:
                # A device, not a file to keep: opened as it is, closed in __exit__.
                self.opened = open(device, "w")  # noqa: SIM115, PTH123
            except OSError as error:
                logger.warning("%s names %s, which cannot be opened (%s)", TTY, device, error)
            return self.opened
        return sys.stderr if sys.stderr.isatty() else None

    def show_step(self, step: int, steps: int, loss: "Tensor") -> None:
        """Show a step and its loss, if the last look is long enough ago."""
        if self.bar is None or time.monotonic() - self.refreshed < REFRESH:
            return
        self.refreshed = time.monotonic()
        self.bar.set_postfix_str(f"step {step + 1}/{steps}, loss {float(loss):.3f}{self.text}")

    def show_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Show a finished epoch."""
        accuracy, speed = metrics["test_accuracy"], metrics["images_per_second"]
        self.text = f", accuracy {accuracy:.3f}, {speed:.0f} images/s"
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {metrics['train_loss']:.3f}{self.text}")
            self.bar.update()
        elif self.shown:
            logger.info(
                "epoch %d of %d: loss %.4f, test accuracy %.4f, codes %.4f, %.0f images/s",
                *(epoch, self.epochs, metrics["train_loss"], accuracy),
                *(metrics["code_accuracy"], speed),
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.opened is not None:
            self.opened.close()
