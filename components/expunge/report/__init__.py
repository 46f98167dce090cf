"""The report of a forget: one HTML page that needs no script, no network and no other file."""

from collections.abc import Mapping
from typing import Any

from expunge.report import attack_plots, plots, tables, words
from expunge.verdicts import verdict

TEMPLATE = "page.html.j2"


def render(validation: Mapping[str, Any], work: Mapping[str, Any]) -> str:
    """The page of a forget, from the reports of `validate` and `perturb`; equal ones, equal bytes.

    What may be absent or null is left out, and the page says so in words. Names of classes are
    texts that a user gave: they are shown, never read as HTML, SVG or mathematics.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("expunge.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": words.number, "percent": words.percent}
    figures = [
        plots.accuracy(validation),
        plots.strength(work, validation.get("policy") or {}),
        plots.layers(validation.get("depth") or {}),
        attack_plots.attacks(validation),
        attack_plots.relearning(validation),
    ]
    return environment.get_template(TEMPLATE).render(
        classes=words.classes(validation["classes"]),
        one_class=len(validation["classes"]) == 1,
        grade=validation["grade"],
        needed=validation.get("needed"),
        outcome=verdict(validation),
        meaning=words.meaning(validation),
        before=validation["before"],
        after=validation["after"],
        oracles=validation.get("oracles") or 0,
        shown=words.shown(validation),
        not_shown=words.not_shown(validation),
        reasons=validation.get("reasons") or [],
        trustworthy=validation.get("trustworthy", True),
        figures=figures,
        per_class=tables.per_class(validation),
        attacks=tables.attacks(validation),
        unchecked=tables.unchecked(validation),
        checks=tables.checks(validation),
        controls=words.controls(validation),
        making=tables.making(validation, work),
    )
