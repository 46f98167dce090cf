"""New heads on the blocks of a frozen body, each on the mean-pooled output of one.

Models retrained without a class know it in their early layers too, so that a value alone says
nothing: only gaps to theirs do. The metric is the mean over the blocks. It is linear, so that its
gap is the mean of the gaps, and averages the noise of single probes. The largest gap of several
would grow with their number and noise. The price is that a gap in one block alone is divided by
their number, and that two of opposite signs cancel: the value of each block is in the report.

Shapes: N images, K forgotten classes. Source: Alain and Bengio (2017); on unlearned models, Jeon et
al., "An information theoretic evaluation metric for strong unlearning" (IDI, all layers).
"""

from dataclasses import replace

from expunge.core.attacks.case import Body, Case
from expunge.core.attacks.head_recovery import recover_with_new_head


def measure(case: Case, seen: Body) -> list[float | None]:
    """Return the mean over the blocks of a new head's accuracy on each forgotten class.

    It is None where no block was recorded.
    """
    rows = list(measure_blocks(case, seen).values())
    if not rows:
        return [None] * len(case.forget)
    return [sum(values) / len(rows) for values in zip(*rows, strict=True)]


def measure_blocks(case: Case, seen: Body) -> dict[str, list[float]]:
    """Return the accuracy on each forgotten class of a new head on each block, by its name."""
    sample, test = seen.head_train, seen.forget_test
    return {
        name: recover_with_new_head(
            replace(sample, features_ND=rows_ND),
            replace(test, features_ND=test.blocks[name]),
            case.forget,
        )
        for name, rows_ND in sample.blocks.items()
    }
