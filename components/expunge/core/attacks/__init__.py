"""Attacks that look for a forgotten class in a model, and the distances to retrained models.

To add an attack: write one file in this folder, and one line in `ATTACKS`.

- The file has `measure(case, seen)`. It returns a value for each forgotten class, and None or NaN
  where there is none.
- An attack that needs oracles (models retrained without the classes) has `learn(case, oracles)` as
  well. It is called once for a group of oracles, and `measure(case, seen, learnt)` gets its result.
- The line says what the gate, the report and a policy need to know. They all read `ATTACKS`, so a
  policy can block on the new attack at once.

The table is data alone: settings read it too, and they start without torch. So the files are
imported when an attack is made. Everything random comes from a `torch.Generator` with the seed of
the case. It is the same for all models, so that two models differ by themselves alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

# What an attack has to have before it can be made, beside the model that it is made on.
Needs = Literal["model", "oracles"]
# The images that a metric is measured on: of each forgotten class, or of all of them together.
Samples = Literal["forget_test", "forget_train", "relearn_test", "all_forget_test"]


@dataclass(frozen=True)
class Tolerance:
    """How far a model may be from retrained ones.

    `margin` is a gap that does not matter. `cap` bounds the standard deviation that is granted to
    the oracles, so that noisy ones do not let more through.
    """

    margin: float
    cap: float


@dataclass(frozen=True)
class Attack:
    """One attack: the name of its metric, and what others need to know of it.

    `meaning` is its line in the report. Without a `tolerance` it is not compared with oracles.
    `looks_into_body` says that it looks at what the head reads, and that no new head can fool it: a
    fall of it against the original is looked at without oracles too, and one such has to count
    before a model is graded forgotten.
    `module` is the file that makes it, where that has another name; `label` is its name in
    sentences, where that is not the metric's.
    """

    name: str
    needs: Needs
    samples: Samples
    tolerance: Tolerance | None
    meaning: str
    looks_into_body: bool = False
    module: str = ""
    label: str = ""

    @property
    def measure(self) -> Callable[..., list[float | None]]:
        """The function that gives the metric's value for each forgotten class."""
        found: Callable[..., list[float | None]] = self._load().measure
        return found

    @property
    def learn(self) -> Callable[..., Any]:
        """The function that reads from a group of oracles what `measure` compares with."""
        found: Callable[..., Any] = self._load().learn
        return found

    def _load(self) -> Any:
        return import_module(f"{__name__}.{self.module or self.name}")


_LIKE_RETRAINED = "compared with models retrained without the class"

# In the order in which the report shows them. Margins and caps were set on MNIST and CIFAR-10, from
# what retrained models differ by and how far the original is from them (both are printed by
# tests/benchmarks/battery.py). Caps are about the largest deviations seen there.
ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        # No tolerance: a class that comes back is evidence, one that does not is none. Bodies that
        # never saw the class can bring it back too, by chance and far apart from each other.
        Attack(
            "head_swap",
            needs="model",
            samples="forget_test",
            tolerance=None,
            meaning="Accuracy on the class with the original's last layer on this model's body. "
            "The body may hold the class where this is higher than in any retrained model. Where "
            "the class does not come back, nothing is shown. A model is graded hidden at best "
            "where at least 80 % of the original's comes back.",
        ),
        Attack(
            "head_recovery",
            needs="model",
            samples="forget_test",
            tolerance=Tolerance(margin=0.005, cap=0.05),
            looks_into_body=True,
            meaning="Accuracy on the class of a new last layer, trained on a few labelled images "
            f"while the body is frozen; {_LIKE_RETRAINED}.",
        ),
        # Margin and cap are those of the prototype, which is as noisy.
        Attack(
            "head_recovery_logistic",
            needs="model",
            samples="forget_test",
            tolerance=Tolerance(margin=0.05, cap=0.05),
            looks_into_body=True,
            label="head recovery with little penalty",
            meaning="The same of a new last layer that is hardly held back, and sees more; "
            f"{_LIKE_RETRAINED}.",
        ),
        Attack(
            "prototype_recovery",
            needs="model",
            samples="forget_test",
            tolerance=Tolerance(margin=0.05, cap=0.05),
            looks_into_body=True,
            meaning="Accuracy on the class when its row of the last layer is made from the "
            f"features of 1 to 10 of its images; {_LIKE_RETRAINED}.",
        ),
        # It does not say `looks_into_body`. A mean over early blocks too can tell where the last
        # features do not, and those are what a model is forgotten by.
        Attack(
            "layer_recovery",
            needs="model",
            samples="forget_test",
            tolerance=Tolerance(margin=0.02, cap=0.03),
            meaning="Accuracy on the class of new last layers on the blocks of the body, the mean "
            f"over the blocks; {_LIKE_RETRAINED}, which know the class in early blocks too.",
        ),
        Attack(
            "relearning",
            needs="model",
            samples="relearn_test",
            tolerance=Tolerance(margin=0.05, cap=0.05),
            meaning="How much of the class a copy gets back while it is fine-tuned on a few "
            f"images: the area under that curve, {_LIKE_RETRAINED}.",
        ),
        Attack(
            "membership",
            needs="model",
            samples="forget_train",
            tolerance=Tolerance(margin=0.05, cap=0.03),
            meaning="Share of the class's training images that an attacker takes for training "
            f"images, by how sure the outputs are; {_LIKE_RETRAINED}.",
        ),
        Attack(
            "output_distance",
            needs="oracles",
            samples="forget_test",
            tolerance=Tolerance(margin=0.08, cap=0.03),
            meaning="How differently the class's test images fall on the other classes: the total "
            "variation between this model's predictions and those of models retrained without the "
            "class.",
        ),
        Attack(
            "cmia",
            needs="oracles",
            samples="forget_test",
            tolerance=Tolerance(margin=0.05, cap=0.03),
            module="class_membership",
            label="class membership",
            meaning="How well discriminators recognise this model's outputs on the class, compared "
            "with models retrained without it. They are fitted to the outputs of such models.",
        ),
        Attack(
            "activation_distance",
            needs="oracles",
            samples="forget_train",
            tolerance=Tolerance(margin=0.08, cap=0.03),
            meaning="Mean distance between this model's output probabilities and those of models "
            "retrained without the class, on the class's training images.",
        ),
        Attack(
            "tow",
            needs="oracles",
            samples="all_forget_test",
            tolerance=Tolerance(margin=0.02, cap=0.02),
            module="tug_of_war",
            label="tug of war",
            meaning="Tug of war: how near the model is to models retrained without the class, on "
            "that class, on training images of the others and on their test images, multiplied; 1 "
            "is best.",
        ),
    )
}
