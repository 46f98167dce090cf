"""Case of an attack: what each model says of the same few images.

Shapes: N images, K forgotten classes. `forget` and `retain` are class indices everywhere in this
folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.core.heads import Head, Observed

if TYPE_CHECKING:
    from expunge.core.attacks.relearning import Relearning

# The parts of the images that a model is asked about; the relearning has images of its own.
PARTS = ("head_train", "forget_train", "retain_train", "forget_test", "retain_test")


@dataclass(frozen=True)
class Seen:
    """What a model says of each part, and how it relearned; all that the attacks need of it."""

    head: Head
    head_train: Observed
    forget_train: Observed
    retain_train: Observed
    forget_test: Observed
    retain_test: Observed
    relearning: Relearning

    def swap_head(self, head: Head, relearning: Relearning) -> Seen:
        """Return the same body under another head, with its own relearning.

        The features are there already, so that a mask costs no pass through the model.
        """
        observed = {part: getattr(self, part).under(head) for part in PARTS}
        return Seen(head=head, relearning=relearning, **observed)

    @property
    def finite(self) -> bool:
        """Whether every feature and logit is a number, as the attacks need."""
        return all(getattr(self, part).finite for part in PARTS)

    def measure_forget_accuracy(self, forget: Sequence[int]) -> list[float]:
        """Return the accuracy on each forgotten class's test samples."""
        return [self.forget_test.of(index).right for index in forget]


@dataclass(frozen=True)
class Case:
    """What is forgotten, what stays, and the original model that the attacks compare with.

    `seed` is that of the draws, the same for every model.
    """

    forget: tuple[int, ...]
    retain: tuple[int, ...]
    original: Seen
    seed: int = 0
