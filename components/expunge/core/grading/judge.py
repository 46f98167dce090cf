"""Several models judged at once: the same battery, the same oracles, the same thresholds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from expunge.core.attacks.case import Case, Seen
from expunge.core.grading import battery, checks, grades
from expunge.core.grading.checks import Check
from expunge.core.grading.grades import Comparison, Counting, Grade, Values
from expunge.core.heads import Observed


@dataclass(frozen=True)
class Judgement:
    """What was found of each model, by its name; `oracles` are those compared with, in order.

    `counting` says which metrics can tell, by class: the controls fail them.
    """

    values: Mapping[str, Values]
    checks: Mapping[str, Mapping[str, Check]]
    grades: Mapping[str, Grade]
    oracles: tuple[Values, ...]
    comparisons: Mapping[str, Comparison]
    counting: Counting


def check_outputs(test: Observed, forget: Sequence[int], least: float) -> bool:
    """Return whether the error on every forgotten class's test samples is at least `least`."""
    own = [test.of(index) for index in forget]
    accuracy, samples = [part.right for part in own], [len(part.labels_N) for part in own]
    found = checks.check_error(
        "forget_error", accuracy, samples=samples, classes=range(len(own)), least=least
    )
    return found.passed


def judge(
    case: Case,
    models: Mapping[str, Seen],
    oracles: Sequence[Seen],
    controls: Sequence[str],
    *,
    forget_error: float,
) -> Judgement:
    """Grade every model against the oracles.

    Args:
        case: what is forgotten and what stays.
        models: what each model says, by its name; none of the oracles may be among them.
        oracles: what each model retrained without the classes says.
        controls: the names of the models that forgot nothing. A metric counts where all of them
            fail it.
        forget_error: the least error on a forgotten class that outputs which forgot it make.

    Raises:
        ValueError: there are too few oracles.
    """
    references = battery.build_references(case, oracles)
    values = {name: battery.measure_all(case, seen, references) for name, seen in models.items()}
    # an oracle is compared with the others alone: its distance to itself is nought
    own = [
        battery.measure_all(case, oracle, [reference])
        for oracle, reference in zip(oracles, references, strict=True)
    ]
    comparisons = grades.compare(own, battery.count_samples(case))
    counting = grades.can_tell(comparisons, [values[name] for name in controls])
    given = {
        name: grades.grade(
            check_outputs(seen.forget_test, case.forget, forget_error),
            comparisons,
            values[name],
            counting,
        )
        for name, seen in models.items()
    }
    return Judgement(
        values=values,
        checks={
            name: grades.check_against_oracles(comparisons, v, counting)
            for name, v in values.items()
        },
        grades=given,
        oracles=tuple(own),
        comparisons=comparisons,
        counting=counting,
    )
