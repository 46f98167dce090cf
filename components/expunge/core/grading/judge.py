"""Several models judged at once: the same battery, the same oracles, the same thresholds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from expunge.core.grading import battery, grades
from expunge.core.grading import checks as gate
from expunge.core.grading.battery import Measured, Request, Seen
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
    alone: Mapping[str, Measured]
    oracles: tuple[Values, ...]
    oracles_alone: tuple[Measured, ...]
    comparisons: Mapping[str, Comparison]
    counting: Counting


def outputs_forget(test: Observed, forget: Sequence[int], least: float) -> bool:
    """Whether the error on every forgotten class's test samples is at least `least`."""
    own = [test.of(index) for index in forget]
    accuracy, samples = [part.right for part in own], [len(part.labels_N) for part in own]
    return gate.error_check("forget_error", accuracy, samples, range(len(own)), least).passed


def judge(
    request: Request,
    models: Mapping[str, Seen],
    oracles: Sequence[Seen],
    controls: Sequence[str],
    forget_error: float,
) -> Judgement:
    """Grade every model against the oracles, none of which may be among the models.

    `controls` are the names of those that forgot nothing: a metric counts where all of them fail.

    Raises:
        ValueError: there are too few oracles.
    """
    references = battery.references(request, oracles)
    alone = {name: battery.measure_alone(request, seen) for name, seen in models.items()}
    values: dict[str, Values] = {
        name: {**alone[name].values, **battery.mean_distances(request, seen, references)}
        for name, seen in models.items()
    }
    oracles_alone = [battery.measure_alone(request, oracle) for oracle in oracles]
    own: list[Values] = [
        {**measured.values, **battery.measure_against(request, oracle, reference)}
        for measured, oracle, reference in zip(oracles_alone, oracles, references, strict=True)
    ]
    comparisons = grades.compare(own, battery.sample_counts(request))
    counting = grades.can_tell(comparisons, [values[name] for name in controls])
    given = {
        name: grades.grade(
            outputs_forget(seen.forget_test, request.forget, forget_error),
            comparisons,
            values[name],
            counting,
        )
        for name, seen in models.items()
    }
    return Judgement(
        values=values,
        checks={name: grades.oracle_checks(comparisons, v, counting) for name, v in values.items()},
        grades=given,
        alone=alone,
        oracles=tuple(own),
        oracles_alone=tuple(oracles_alone),
        comparisons=comparisons,
        counting=counting,
    )
