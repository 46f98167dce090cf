"""Plots of what the forget did: by class, along the strengths that were tried, and by layer."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from expunge.report import words
from expunge.report.drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    Plot,
    add_legend,
    apply_style,
    clean_name,
    create_figure,
    render_svg,
    set_plain_ticks,
)
from expunge.validation_report import Depth, ValidationReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 40  # more bars than this cannot be read on one page
MOST_TICKS = 5
MEASURED = ("forget_loss", "damage")  # of each trial, in nats
MOST_ASKED = 20  # of them, classes to forget
PATHS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"), (SKY, "v"), (RED, "P"))
# Losses, in nats, that leave a code the probabilities by which the calibration goes.
LOSS_AT = {left: -math.log(left) for left in (0.05, 0.01)}


def plot_accuracy(report: ValidationReport) -> Plot:
    """Plot the accuracy of each class before and after, as bars."""
    from matplotlib.patches import Patch

    before, after = report.before.per_class if report.before else (), report.after.per_class
    asked = sorted(report.classes)
    rows, note = _choose_classes(before, after, asked, report.samples)
    with apply_style("plot-accuracy"):
        figure = create_figure(80 + 23 * len(rows))
        axes = figure.add_subplot()
        for y, index in enumerate(rows):
            gone = index in asked
            if gone:
                axes.axhspan(y - 0.5, y + 0.5, color="#fbe9dd", zorder=0)
            axes.barh(y - 0.19, before[index] or 0, 0.36, color=GREY)
            axes.barh(
                y + 0.19,
                after[index] or 0,
                0.36,
                color=RED if gone else BLUE,
                hatch="////" if gone else None,
                edgecolor="white",
                linewidth=0,
            )
        labels = [_label_class(index, report.class_names[index]) for index in rows]
        axes.set_yticks(range(len(rows)), labels)
        for text, index in zip(axes.get_yticklabels(), rows, strict=True):
            text.set_fontweight("bold" if index in asked else "normal")
        axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), xlabel="accuracy on test images")
        axes.grid(visible=False, axis="y")
        handles = [
            Patch(color=GREY, label="before"),
            Patch(color=BLUE, label="after"),
            Patch(facecolor=RED, edgecolor="white", hatch="////", label="after, to forget"),
        ]
        add_legend(figure, handles, 3)
        error = words.format_percent(report.after.forget_error)
        svg = render_svg(
            figure,
            "plot-accuracy",
            "Accuracy by class, before and after",
            f"Bars for {len(rows)} classes. {words.name_classes(asked).capitalize()}: error after "
            f"{error}.",
        )
    reading = (
        "Each class has two bars: its accuracy before the change and after it. The classes to "
        "forget are hatched, on a tinted row; their lower bar should be gone. All other bars "
        "should keep their length."
    )
    return Plot("plot-accuracy", "Class by class", reading, svg, note)


def _choose_classes(
    before: Sequence[float | None],
    after: Sequence[float | None],
    asked: Sequence[int],
    samples: Sequence[int],
) -> tuple[list[int], str]:
    """Return the classes that are shown, in their order, and what is left out."""
    measured = [i for i in range(len(after)) if i >= len(samples) or samples[i] or i in asked]
    if len(measured) <= MOST_ROWS:
        absent = len(after) - len(measured)
        return measured, f"{absent} without test images are left out." if absent else ""
    gone = sorted(asked, key=lambda i: (-(after[i] or 0), i))[:MOST_ASKED]
    others = [i for i in measured if i not in asked]
    others.sort(key=lambda i: ((after[i] or 0) - (before[i] or 0), i))
    shown = sorted(gone) + others[: MOST_ROWS - len(gone)]
    which = "the classes to forget"
    if len(gone) < len(asked):
        which = f"{len(gone)} of the {len(asked)} classes to forget, those with the lowest error"
    return shown, (
        f"{len(shown)} of {len(after)} classes are shown: {which}, then the "
        f"{len(shown) - len(gone)} others that lost most, the worst first. The table has all."
    )


def _label_class(index: int, name: str) -> str:
    return str(index) if name == str(index) else f"{index} · {clean_name(name)}"


def plot_strengths(work: Mapping[str, Any], policy: Mapping[str, Any]) -> Plot:
    """Plot every trial: how far the codes to forget went, and what that cost the others."""
    heading = "How the strength was chosen"
    chosen = {key: work.get(key) for key in ("rule", "sign", "lambdas", "strength")}
    trials = [trial for trial in work.get("trials") or [] if (trial["strength"] or 0) > 0]
    if not any(_list_values(trials, key) for key in MEASURED):
        missing = "No strength was tried: the change was applied with the values that were given."
        if work.get("stage"):
            missing = (
                "Rule replay has no strength. What it did to the last stage is in the table of how "
                "the model was made."
            )
        if trials:
            missing = "None of the strengths that were tried gave a finite value."
        return Plot("plot-strength", heading, "", missing=missing)
    paths: dict[str, list[Mapping[str, Any]]] = {}
    for trial in trials:
        paths.setdefault(_name_path(trial), []).append(trial)
    budget = policy.get("budget")
    allowed = -math.log1p(-budget) if budget and 0 < budget < 1 else None
    with apply_style("plot-strength"):
        figure = create_figure(440)
        upper, lower = figure.subplots(2, 1, sharex=True)
        for (name, rows), (color, marker) in zip(
            sorted(paths.items()), PATHS * len(paths), strict=False
        ):
            rows.sort(key=lambda row: row["strength"])
            looks = {"color": color, "marker": marker, "markersize": 4.5, "linewidth": 1}
            for axes, key in zip((upper, lower), MEASURED, strict=True):
                known = [row for row in rows if row.get(key) is not None]
                xs, ys = [row["strength"] for row in known], [row[key] for row in known]
                axes.plot(xs, ys, label=name, **looks)
        for axes, key in zip((upper, lower), MEASURED, strict=True):
            if (chosen["strength"] or 0) > 0 and work.get(key) is not None:
                axes.plot(
                    chosen["strength"],
                    work[key],
                    marker="*",
                    markersize=17,
                    markeredgecolor="white",
                    color=BLACK,
                    linestyle="none",
                    label="chosen",
                    zorder=5,
                )
        _draw_level(upper, LOSS_AT[0.05], "5 % left", below=True)
        _draw_level(upper, LOSS_AT[0.01], "1 % left")
        if allowed:
            _draw_level(lower, allowed, "budget")
        # linear up to one nat, and up to what the budget allows
        losses, damages = (_list_values([work, *trials], key) for key in MEASURED)
        _scale_from_zero(upper, 1.0, max([LOSS_AT[0.01], *losses]))
        _scale_from_zero(lower, allowed or 0.01, max([allowed or 0.01, *damages]))
        upper.set_title("loss of the codes to forget (their lowest), nats")
        lower.set_title("damage to predictions of the others, nats")
        lower.set(xscale="log", xlabel="strength")
        set_plain_ticks(lower, "x")
        handles = {line.get_label(): line for axes in (upper, lower) for line in axes.get_lines()}
        named = [line for name, line in handles.items() if not str(name).startswith("_")]
        add_legend(figure, named, 2)
        svg = render_svg(
            figure,
            "plot-strength",
            "Loss of the codes to forget and damage to the others, by strength",
            f"{len(trials)} trials on {len(paths)} paths. Chosen: {_name_path(chosen)} at strength "
            f"{words.format_number(chosen['strength'])}.",
        )
    reading = (
        "These values were measured on the model's codes alone, without data. In the upper plot, "
        "higher is deeper: a loss of 3.0 nats leaves the code 5 % of probability. In the lower "
        "plot, lower is better, and the dotted line is what the budget of accuracy allows. The "
        "star is what was applied. Points beyond all bounds are left out."
    )
    return Plot("plot-strength", heading, reading, svg)


def _list_values(trials: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [trial[key] for trial in trials if trial.get(key) is not None]


def _name_path(trial: Mapping[str, Any]) -> str:
    """Return the rule with what tells its paths apart."""
    lambdas = trial.get("lambdas") or []
    bound = f", λ2 {lambdas[1]:g}" if len(lambdas) > 1 else ""
    sign = {1: "+", -1: "-"}.get(trial.get("sign") or 0, "")
    return f"{trial.get('rule')}{bound}{f', sign {sign}' if sign else ''}"


def _draw_level(axes: "Axes", y: float, text: str, *, below: bool = False) -> None:
    axes.axhline(y, color=GREY, linestyle=":", linewidth=1.2)
    axes.annotate(
        text,
        (1, y),
        (0, -3 if below else 2),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=9.5,
        color=INK,
        horizontalalignment="right",
        verticalalignment="top" if below else "bottom",
    )


def _scale_from_zero(axes: "Axes", low: float, high: float) -> None:
    """Scale an axis linearly up to `low` and logarithmically from there to `high`.

    The ticks are at zero and at powers of ten that do not run into each other.
    """
    from matplotlib.ticker import FixedLocator

    axes.set_yscale("symlog", linthresh=low, linscale=0.6)
    axes.set_ylim(-0.25 * low, 2 * high)
    powers = [10.0**power for power in range(-6, 13) if low <= 10.0**power <= 2 * high]
    apart = -(-len(powers) // MOST_TICKS) or 1
    axes.yaxis.set_major_locator(FixedLocator([0.0, *powers[::apart]]))
    set_plain_ticks(axes, "y")


def plot_layers(depth: Depth) -> Plot:
    """Plot the relative change of each layer, and what the two halves of the change do alone."""
    heading = "How deep the change goes"
    every = [(layer.name, layer.relative_change) for layer in depth.layers]
    rows = [(name, change) for name, change in every if change is not None]
    if not rows:
        missing = "How much each layer changed was not measured."
        return Plot("plot-layers", heading, "", missing=missing)
    parts = {"head alone": depth.head_alone, "body alone": depth.body_alone, "both": depth.both}
    halves = {name: error for name, error in parts.items() if error is not None}
    shown, note = rows, ""
    if len(rows) > MOST_ROWS:
        ordered = sorted(range(len(rows)), key=lambda i: (-rows[i][1], i))
        shown = [rows[i] for i in sorted(ordered[:MOST_ROWS])]
        note = (
            f"{MOST_ROWS} of {len(rows)} layers are shown, those that changed most, in the "
            "model's order."
        )
    with apply_style("plot-layers"):
        heights = [19 * len(shown) + 46] + ([19 * len(halves) + 46] if halves else [])
        figure = create_figure(sum(heights) + 24)
        panels = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        changes = [change for _, change in shown]
        _draw_bars(panels[0], [clean_name(name, 30) for name, _ in shown], changes, BLUE)
        panels[0].set_title("relative change of each layer")
        panels[0].set_xlim(0, max(changes) * 1.2 or 1)
        if halves:
            _draw_bars(panels[1], list(halves), list(halves.values()), ORANGE)
            panels[1].set_title("error on the classes to forget that it gives")
            panels[1].set_xlim(0, 1.2)
            panels[1].set_xticks([0, 0.25, 0.5, 0.75, 1])
        errors = [f"{name}: error {words.format_percent(v)}." for name, v in halves.items()]
        svg = render_svg(
            figure,
            "plot-layers",
            "Relative change of each layer; effect of head and body alone",
            f"{len(shown)} layers. {' '.join(errors)}",
        )
    reading = (
        "The upper plot shows each tensor of weights: the norm of what was added, over the norm of "
        "what was there. The lower plot, where it was measured, shows the error on the classes to "
        "forget: with the changed last layer (head) on the original's body, with the original's "
        "head on the changed body, and with both. Where the head alone does all of it, the change "
        "is shallow."
    )
    return Plot("plot-layers", heading, reading, svg, note)


def _draw_bars(axes: "Axes", names: Sequence[str], values: Sequence[float], color: str) -> None:
    axes.barh(range(len(names)), values, 0.66, color=color)
    axes.set_yticks(range(len(names)), names, fontsize=9.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    for y, value in enumerate(values):
        text = words.format_number(value)
        axes.annotate(text, (value, y), (3, 0), textcoords="offset points", va="center", size=9.5)
