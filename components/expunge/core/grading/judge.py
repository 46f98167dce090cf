"""Several models judged at once: the same battery, the same oracles, the same thresholds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from expunge.core.attacks.case import Body, Case, Seen
from expunge.core.attacks.head_swap import measure_fit
from expunge.core.grading import battery, body, checks, grades
from expunge.core.grading.body import Values
from expunge.core.grading.checks import Check
from expunge.core.grading.grades import Comparison, Counting, Grade
from expunge.core.heads import Observed


@dataclass(frozen=True)
class Judgement:
    """What was found of each model, by its name; `oracles` are those compared with, in order.

    `fits` says whether the original's head works on the model's body, `held` of each forgotten
    class whether it was shown to be in there, and `counting` which metrics can tell, by class: the
    controls fail them.
    """

    values: Mapping[str, Values]
    checks: Mapping[str, Mapping[str, Check]]
    grades: Mapping[str, Grade]
    fits: Mapping[str, bool]
    held: Mapping[str, tuple[bool, ...]]
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
        models: what each model says, by its name. The case's original has to be among them, and
            none of the oracles may be.
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
    samples = battery.count_samples(case.forget, oracles[0])
    comparisons = grades.compare(own, samples)
    counting = grades.can_tell(comparisons, [values[name] for name in controls])
    full = next(values[name] for name, seen in models.items() if seen is case.original)
    fits = {name: _fits_head(case, seen) for name, seen in models.items()}
    held = {
        name: body.find_held(mine, full, samples, fits=fits[name], oracles=own)
        for name, mine in values.items()
    }
    given = {
        name: grades.grade(
            check_outputs(seen.forget_test, case.forget, forget_error),
            comparisons,
            values[name],
            counting,
            held=held[name],
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
        fits=fits,
        held=held,
        oracles=tuple(own),
        comparisons=comparisons,
        counting=counting,
    )


def judge_alone(case: Case, models: Mapping[str, Body], *, forget_error: float) -> Judgement:
    """Grade every model by its outputs and the body checks, without oracles.

    `forget_error` is the least error on a forgotten class that outputs which forgot it make. The
    case's original has to be among the models.
    """
    values = {name: battery.measure_body(case, seen) for name, seen in models.items()}
    samples = dict.fromkeys((body.SWAP, *body.CHECKS), case.original.count_forget_test(case.forget))
    full = next(values[name] for name, seen in models.items() if seen is case.original)
    fits = {name: _fits_head(case, seen) for name, seen in models.items()}
    held = {
        name: body.find_held(mine, full, samples, fits=fits[name]) for name, mine in values.items()
    }
    given = {
        name: grades.grade(
            check_outputs(seen.forget_test, case.forget, forget_error),
            {},
            {},
            {},
            held=held[name],
        )
        for name, seen in models.items()
    }
    return Judgement(
        values=values,
        checks={name: {} for name in models},
        grades=given,
        fits=fits,
        held=held,
        oracles=(),
        comparisons={},
        counting={},
    )


def _fits_head(case: Case, seen: Body) -> bool:
    """Return whether the original's head works on the body, as far as there is a sample to tell."""
    share = measure_fit(case, seen)
    return share is None or share >= body.RETURNED
