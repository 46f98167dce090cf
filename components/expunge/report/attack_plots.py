"""The unlearned model under attack, beside the controls and the oracles."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from expunge.report import words
from expunge.report.drawing import (
    BLACK,
    GREY,
    MODELS,
    Plot,
    legend_above,
    model_handles,
    new_figure,
    style,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A ratio of steps, not a fraction: it stands in the table alone.
NOT_A_FRACTION = "anamnesis"
# Its threshold is where the class has come back, not a distance from the oracles.
RETURNED = "head_swap"
BAND = "#cfe8dd"


def attacks(validation: Mapping[str, Any]) -> Plot:
    """One row a metric: every model, the oracles' range, and what is near enough to them."""
    heading = "Attacks, beside controls and retrained models"
    rows = {
        name: row
        for name, row in words.metrics(validation).items()
        if name != NOT_A_FRACTION and any(row.get(model) is not None for model in MODELS)
    }
    if not validation.get("oracles") or not rows:
        missing = (
            "There were no models retrained without the classes (oracles) to compare with, so "
            "there is no plot of attacks."
        )
        return Plot("plot-attacks", heading, "", missing=missing)
    counts = {check["name"]: check.get("counts") for check in validation["checks"]}
    with style("plot-attacks"):
        figure = new_figure(92 + 42 * len(rows))
        axes = figure.add_subplot()
        labels = []
        for y, (name, row) in enumerate(rows.items()):
            why = "" if counts.get(name) else "cannot tell" if name in counts else "no check"
            why = "one-sided" if name == RETURNED else why
            labels.append(words.label(name) + (f"\n({why})" if why else ""))
            _row(axes, y, name, row)
            if y:
                axes.axhline(y - 0.5, color="#d5d5d5", linewidth=0.8)
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        highest = max(1.0, *(value for row in rows.values() for value in _values(row)))
        axes.set_xlim(-0.03, highest + 0.03)
        axes.set_xlabel("value of the metric")
        axes.grid(visible=False, axis="y")
        legend_above(figure, _handles([m for m in MODELS if any(m in r for r in rows.values())]), 4)
        svg = to_svg(
            figure,
            "plot-attacks",
            "Attacks on the unlearned model, the controls and retrained models",
            f"{len(rows)} metrics, {validation['oracles']} oracles. The table has every value.",
        )
    reading = (
        "Each row is one metric. The green band is what passes: as near to the mean of the models "
        "retrained without the classes (the oracles, black bar) as the threshold allows. A row "
        "says something only where the original and the mask lie outside it; the others are "
        "marked. Head swap is one-sided: beyond its band the class has come back, and within it "
        "nothing is shown."
    )
    return Plot("plot-attacks", heading, reading, svg)


def _values(row: Mapping[str, Any]) -> list[float]:
    every = [row.get(model) for model in MODELS] + list(row.get("oracles") or [])
    return [value for value in every if value is not None]


def _row(axes: "Axes", y: int, name: str, row: Mapping[str, Any]) -> None:
    """Each model has its own height within the row, so that equal values stay apart."""
    oracles = [value for value in row.get("oracles") or [] if value is not None]
    threshold = row.get("threshold")
    if name == RETURNED and threshold is not None:
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
        value = row.get(model)
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


def _handles(models: list[str]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    oracles = Line2D([], [], color=BLACK, marker="|", markersize=11, linewidth=3, label="oracles")
    return [*model_handles(models), oracles, Patch(color=BAND, label="passes")]


def relearning(validation: Mapping[str, Any]) -> Plot:
    """Accuracy on the class while copies are fine-tuned on a few of its images."""
    heading = "Relearning"
    found = validation.get("relearning") or {}
    steps, curves = found.get("steps") or [], found.get("curves") or {}
    if not steps or not curves:
        missing = "No model was fine-tuned on the classes again, so there are no relearning curves."
        return Plot("plot-relearning", heading, "", missing=missing)
    with style("plot-relearning"):
        from matplotlib.lines import Line2D

        figure = new_figure(310)
        axes = figure.add_subplot()
        handles: list[Any] = []
        columns = list(zip(*(curves.get("oracles") or []), strict=True))
        if columns:
            low, high = ([_or_nan(end, column) for column in columns] for end in (min, max))
            axes.fill_between(steps, low, high, color=GREY, alpha=0.45, linewidth=0)
            mean = [_or_nan(_mean, column) for column in columns]
            axes.plot(steps, mean, color=BLACK, linewidth=1.6, linestyle="--")
        for model, (color, marker) in MODELS.items():
            values = curves.get(model)
            if values is None:
                continue
            ys = [math.nan if value is None else value for value in values]
            width = 2.4 if model == "unlearned" else 1.4
            axes.plot(steps, ys, color=color, marker=marker, markersize=5.5, linewidth=width)
            handles.append(Line2D([], [], color=color, marker=marker, linewidth=width, label=model))
        if columns:
            handles.append(Line2D([], [], color=BLACK, linestyle="--", label="oracles"))
        axes.set(ylim=(-0.03, 1.03), xlabel="steps of fine-tuning", title="accuracy on the class")
        axes.set_xlim(min(steps), max(steps))
        legend_above(figure, handles, 3)
        svg = to_svg(
            figure,
            "plot-relearning",
            "Accuracy on the class to forget while it is relearned",
            f"{len(handles)} curves from step {steps[0]} to step {steps[-1]}.",
        )
    reading = (
        "Copies of all models are fine-tuned alike on a few images of the classes among others; "
        "of several classes, the one that is back furthest is drawn. A model that let go of the "
        "class rises like the models retrained without it (dashed: their mean, grey: their "
        "range); one that hides it rises at once."
    )
    return Plot("plot-relearning", heading, reading, svg)


def _or_nan(reduce: Any, values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(reduce(known)) if known else math.nan


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
