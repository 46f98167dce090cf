"""The report of a forget: one HTML page that needs no script, no network and no other file."""

from collections.abc import Mapping
from typing import Any

from expunge.report import attack_plots, plots, tables, words
from expunge.validation_report import Accuracies, ValidationReport

TEMPLATE = "page.html.j2"


def render(report: ValidationReport, work: Mapping[str, Any]) -> str:
    """Return the page of a forget, from what `validate` and `perturb` reported.

    Equal reports give equal bytes. What may be absent or null is left out, and the page says so in
    words. Names of classes are texts that a user gave: they are shown, never read as HTML, SVG or
    mathematics.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("expunge.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,  # a misspelt name is an error, not an empty place
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": words.format_number, "percent": words.format_percent}
    figures = [
        plots.plot_accuracy(report),
        plots.plot_strengths(work, report.policy),
        plots.plot_layers(report.depth),
        attack_plots.plot_attacks(report),
        attack_plots.plot_relearning(report),
    ]
    return environment.get_template(TEMPLATE).render(
        classes=words.name_classes(report.classes),
        one_class=len(report.classes) == 1,
        grade=report.grade,
        needed=report.verdict.needed,
        outcome=report.verdict.outcome,
        headline=report.verdict.headline,
        tone=report.verdict.tone,
        meaning=words.explain_grade(report),
        before=report.before or Accuracies(),
        after=report.after,
        oracles=report.oracles,
        shown=words.list_shown(report),
        not_shown=words.list_not_shown(report),
        reasons=report.verdict.reasons,
        trustworthy=report.verdict.trustworthy,
        figures=figures,
        per_class=tables.tabulate_classes(report),
        attacks=tables.tabulate_attacks(report),
        blocks=tables.tabulate_blocks(report),
        unchecked=tables.list_unchecked(report),
        rungs=tables.tabulate_rungs(report),
        checks=tables.tabulate_checks(report),
        controls=words.order_controls(report),
        making=tables.tabulate_making(report, work),
    )
