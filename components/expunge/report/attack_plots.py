"""Plots of the unlearned model under attack, beside the controls and the oracles."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from expunge.core.attacks import ATTACKS
from expunge.report import words
from expunge.report.drawing import (
    BLACK,
    GREY,
    MODELS,
    Plot,
    add_legend,
    apply_style,
    create_figure,
    create_handles,
    render_svg,
)
from expunge.validation_report import AttackRow, ValidationReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Their thresholds are where the class has come back, not a distance from the oracles.
ONE_SIDED = tuple(attack.name for attack in ATTACKS.values() if attack.tolerance is None)
BAND = "#cfe8dd"


def plot_attacks(report: ValidationReport) -> Plot:
    """Plot one row a metric: every model, the oracles' range, and what is near enough to them."""
    heading = "Attacks, beside controls and retrained models"
    rows = {
        name: row
        for name, row in words.order_attacks(report).items()
        # the anamnesis index is a ratio of steps, not a fraction: it stands in the table alone
        if name != words.ANAMNESIS and any(row.values.get(m) is not None for m in MODELS)
    }
    if not report.oracles or not rows:
        missing = (
            "There were no models retrained without the classes (oracles) to compare with, so "
            "there is no plot of attacks."
        )
        return Plot("plot-attacks", heading, "", missing=missing)
    counts = {check.name: check.counts for check in report.checks}
    with apply_style("plot-attacks"):
        figure = create_figure(92 + 42 * len(rows))
        axes = figure.add_subplot()
        labels = []
        for y, (name, row) in enumerate(rows.items()):
            why = "" if counts.get(name) else "cannot tell" if name in counts else "no check"
            why = "one-sided" if name in ONE_SIDED else why
            labels.append(words.name_metric(name) + (f"\n({why})" if why else ""))
            _draw_row(axes, y, name, row)
            if y:
                axes.axhline(y - 0.5, color="#d5d5d5", linewidth=0.8)
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        highest = max(1.0, *(value for row in rows.values() for value in _list_values(row)))
        axes.set_xlim(-0.03, highest + 0.03)
        axes.set_xlabel("value of the metric")
        axes.grid(visible=False, axis="y")
        present = [model for model in MODELS if any(model in r.values for r in rows.values())]
        add_legend(figure, _create_legend(present), 4)
        svg = render_svg(
            figure,
            "plot-attacks",
            "Attacks on the unlearned model, the controls and retrained models",
            f"{len(rows)} metrics, {report.oracles} oracles. The table has every value.",
        )
    reading = (
        "Each row is one metric. The black bar is the range of the models retrained without the "
        "classes (the oracles). The green band is what passes: it lies around their mean and is as "
        "wide as the threshold allows. A row says something only where the original and the mask "
        "lie outside the band; the others are marked. Head swap is one-sided: beyond its band the "
        "class has come back, and within it nothing is shown."
    )
    return Plot("plot-attacks", heading, reading, svg)


def _list_values(row: AttackRow) -> list[float]:
    every = [*(row.values.get(model) for model in MODELS), *(row.oracles or ())]
    return [value for value in every if value is not None]


def _draw_row(axes: "Axes", y: int, name: str, row: AttackRow) -> None:
    """Draw a metric; each model has its own height within the row, so equal values stay apart."""
    oracles = [value for value in row.oracles or () if value is not None]
    threshold = row.threshold
    if name in ONE_SIDED and threshold is not None:
        axes.barh(y, threshold, 0.9, color=BAND, zorder=1)
    elif oracles and threshold is not None:
        mean = sum(oracles) / len(oracles)
        # a metric of distances and shares cannot be below 0
        low = max(0.0, mean - threshold)
        axes.barh(y, mean + threshold - low, 0.9, left=low, color=BAND, zorder=1)
    if oracles:
        axes.plot([min(oracles), max(oracles)], [y, y], color=BLACK, linewidth=3, zorder=2)
        axes.plot(
            oracles, [y] * len(oracles), color=BLACK, marker="|", markersize=13, linestyle="none"
        )
    for place, (model, (color, marker)) in enumerate(MODELS.items()):
        value = row.values.get(model)
        if value is not None:
            axes.plot(
                value,
                y + (place - 2) * 0.16,
                color=color,
                marker=marker,
                markersize=7.5 if model == "unlearned" else 6,
                markeredgecolor="white",
                markeredgewidth=0.6,
                linestyle="none",
                zorder=4,
            )


def _create_legend(models: list[str]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    oracles = Line2D([], [], color=BLACK, marker="|", markersize=11, linewidth=3, label="oracles")
    return [*create_handles(models), oracles, Patch(color=BAND, label="passes")]


def plot_relearning(report: ValidationReport) -> Plot:
    """Plot the accuracy on the class while copies are fine-tuned on a few of its images."""
    heading = "Relearning"
    found = report.relearning
    if found is None or not found.steps or not (found.curves or found.oracles):
        missing = "No model was fine-tuned on the classes again, so there are no relearning curves."
        return Plot("plot-relearning", heading, "", missing=missing)
    with apply_style("plot-relearning"):
        from matplotlib.lines import Line2D

        figure = create_figure(310)
        axes = figure.add_subplot()
        handles: list[Any] = []
        # a curve has no value where its model diverged, and then leaves a gap
        columns = list(zip(*found.oracles, strict=True))
        if columns:
            low, high = ([_reduce_known(end, column) for column in columns] for end in (min, max))
            axes.fill_between(found.steps, low, high, color=GREY, alpha=0.45, linewidth=0)
            mean = [_reduce_known(_compute_mean, column) for column in columns]
            axes.plot(found.steps, mean, color=BLACK, linewidth=1.6, linestyle="--")
        for model, (color, marker) in MODELS.items():
            values = found.curves.get(model)
            if values is None:
                continue
            ys = [math.nan if value is None else value for value in values]
            width = 2.4 if model == "unlearned" else 1.4
            axes.plot(found.steps, ys, color=color, marker=marker, markersize=5.5, linewidth=width)
            handles.append(Line2D([], [], color=color, marker=marker, linewidth=width, label=model))
        if columns:
            handles.append(Line2D([], [], color=BLACK, linestyle="--", label="oracles"))
        axes.set(ylim=(-0.03, 1.03), xlabel="steps of fine-tuning", title="accuracy on the class")
        axes.set_xlim(min(found.steps), max(found.steps))
        add_legend(figure, handles, 3)
        svg = render_svg(
            figure,
            "plot-relearning",
            "Accuracy on the class to forget while it is relearned",
            f"{len(handles)} curves from step {found.steps[0]} to step {found.steps[-1]}.",
        )
    reading = (
        "Copies of all models are fine-tuned alike, on a few images of the classes among others. "
        "Of several classes, the one that is back furthest is drawn. A model that let go of the "
        "class rises like the models retrained without it: their mean is dashed, their range grey. "
        "A model that hides the class rises at once."
    )
    return Plot("plot-relearning", heading, reading, svg)


def _reduce_known(
    reduce: Callable[[Sequence[float]], float], values: Sequence[float | None]
) -> float:
    known = [value for value in values if value is not None]
    return float(reduce(known)) if known else math.nan


def _compute_mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
