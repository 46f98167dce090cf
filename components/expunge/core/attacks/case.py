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
# Those that the body checks need, which are made without oracles as well.
BODY_PARTS = ("head_train", "forget_test")


@dataclass(frozen=True)
class Body:
    """What a model says of the two parts that the body checks need.

    `head_train` has no image where there is no sample to train a new head on.
    """

    head: Head
    head_train: Observed
    forget_test: Observed

    def put_under(self, head: Head) -> Body:
        """Return the same body under another head."""
        return Body(head, self.head_train.under(head), self.forget_test.under(head))

    @property
    def finite(self) -> bool:
        """Whether every feature and logit is a number, as the attacks need."""
        return all(getattr(self, part).finite for part in BODY_PARTS)

    def measure_forget_accuracy(self, forget: Sequence[int]) -> list[float]:
        """Return the accuracy on each forgotten class's test samples."""
        return [self.forget_test.of(index).right for index in forget]

    def count_forget_test(self, forget: Sequence[int]) -> list[int]:
        """Return how many test samples of each forgotten class there are."""
        return [len(self.forget_test.of(index).labels_N) for index in forget]


@dataclass(frozen=True)
class Seen(Body):
    """What a model says of each part, and how it relearned; all that the attacks need of it."""

    forget_train: Observed
    retain_train: Observed
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


@dataclass(frozen=True)
class Case:
    """What is forgotten, what stays, and the original model that the attacks compare with.

    `seed` is that of the draws, the same for every model.
    """

    forget: tuple[int, ...]
    retain: tuple[int, ...]
    original: Body
    seed: int = 0
