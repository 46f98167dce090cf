"""What the forget did: by class, along the strengths that were tried, and by layer."""

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
    legend_above,
    new_figure,
    plain_ticks,
    readable,
    style,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 40  # more bars than this cannot be read on one page
MOST_TICKS = 5
MEASURED = ("forget_loss", "damage")  # of each trial, in nats
MOST_ASKED = 20  # of them, classes to forget
PATHS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"), (SKY, "v"), (RED, "P"))
# Losses, in nats, that leave a code the probabilities by which the calibration goes.
LOSS_AT = {left: -math.log(left) for left in (0.05, 0.01)}


def accuracy(validation: Mapping[str, Any]) -> Plot:
    """Accuracy of each class before and after, as bars."""
    from matplotlib.patches import Patch

    before, after = (validation[key]["per_class"] for key in ("before", "after"))
    asked = sorted(validation["classes"])
    rows, note = _rows(before, after, asked, validation.get("samples") or [])
    with style("plot-accuracy"):
        figure = new_figure(80 + 23 * len(rows))
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
        labels = [_class_label(index, validation["class_names"][index]) for index in rows]
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
        legend_above(figure, handles, 3)
        error = words.percent(validation["after"].get("forget_error"))
        svg = to_svg(
            figure,
            "plot-accuracy",
            "Accuracy by class, before and after",
            f"Bars for {len(rows)} classes. {words.classes(asked).capitalize()}: error after "
            f"{error}.",
        )
    reading = (
        "Each class has two bars: its accuracy before the change and after it. The classes to "
        "forget are hatched, on a tinted row; their lower bar should be gone. All others should "
        "keep their length."
    )
    return Plot("plot-accuracy", "Class by class", reading, svg, note)


def _rows(
    before: Sequence[float], after: Sequence[float], asked: Sequence[int], samples: Sequence[int]
) -> tuple[list[int], str]:
    """The classes that are shown, in their order, and what is left out."""
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


def _class_label(index: int, name: str) -> str:
    return str(index) if name == str(index) else f"{index} · {readable(name)}"


def strength(work: Mapping[str, Any], policy: Mapping[str, Any]) -> Plot:
    """Every trial: how far the codes to forget went, and what that cost the others."""
    heading = "How the strength was chosen"
    chosen = {key: work.get(key) for key in ("rule", "sign", "lambdas", "strength")}
    trials = [trial for trial in work.get("trials") or [] if (trial["strength"] or 0) > 0]
    if not any(_values(trials, key) for key in MEASURED):
        missing = "No strength was tried: the change was applied with the values that were given."
        if trials:
            missing = "None of the strengths that were tried gave a finite value."
        return Plot("plot-strength", heading, "", missing=missing)
    paths: dict[str, list[Mapping[str, Any]]] = {}
    for trial in trials:
        paths.setdefault(_path(trial), []).append(trial)
    budget = policy.get("budget")
    allowed = -math.log1p(-budget) if budget and 0 < budget < 1 else None
    with style("plot-strength"):
        figure = new_figure(440)
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
        _level(upper, LOSS_AT[0.05], "5 % left", below=True)
        _level(upper, LOSS_AT[0.01], "1 % left")
        if allowed:
            _level(lower, allowed, "budget")
        # linear up to one nat, and up to what the budget allows
        _from_zero(upper, 1.0, max([LOSS_AT[0.01], *_values([work, *trials], "forget_loss")]))
        _from_zero(
            lower, allowed or 0.01, max([allowed or 0.01, *_values([work, *trials], "damage")])
        )
        upper.set_title("loss of the codes to forget (their lowest), nats")
        lower.set_title("damage to predictions of the others, nats")
        lower.set(xscale="log", xlabel="strength")
        plain_ticks(lower, "x")
        handles = {line.get_label(): line for axes in (upper, lower) for line in axes.get_lines()}
        named = [line for name, line in handles.items() if not str(name).startswith("_")]
        legend_above(figure, named, 2)
        svg = to_svg(
            figure,
            "plot-strength",
            "Loss of the codes to forget and damage to the others, by strength",
            f"{len(trials)} trials on {len(paths)} paths. Chosen: {_path(chosen)} at strength "
            f"{words.number(chosen['strength'])}.",
        )
    reading = (
        "Measured on the model's codes alone, without data. Above, higher is deeper: a loss of "
        "3.0 nats leaves the code 5 % of probability. Below, lower is better, and the dotted line "
        "is what the budget of accuracy allows. The star is what was applied. Points that are "
        "beyond all bounds are left out."
    )
    return Plot("plot-strength", heading, reading, svg)


def _values(trials: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [trial[key] for trial in trials if trial.get(key) is not None]


def _path(trial: Mapping[str, Any]) -> str:
    """The rule with what tells its paths apart."""
    lambdas = trial.get("lambdas") or []
    bound = f", λ2 {lambdas[1]:g}" if len(lambdas) > 1 else ""
    sign = {1: "+", -1: "-"}.get(trial.get("sign") or 0, "")
    return f"{trial.get('rule')}{bound}{f', sign {sign}' if sign else ''}"


def _level(axes: "Axes", y: float, text: str, *, below: bool = False) -> None:
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


def _from_zero(axes: "Axes", low: float, high: float) -> None:
    """A scale that is linear up to `low` and logarithmic from there to `high`, ticks at zero and at
    powers of ten that do not run into each other.
    """
    from matplotlib.ticker import FixedLocator

    axes.set_yscale("symlog", linthresh=low, linscale=0.6)
    axes.set_ylim(-0.25 * low, 2 * high)
    powers = [10.0**power for power in range(-6, 13) if low <= 10.0**power <= 2 * high]
    apart = -(-len(powers) // MOST_TICKS) or 1
    axes.yaxis.set_major_locator(FixedLocator([0.0, *powers[::apart]]))
    plain_ticks(axes, "y")


def layers(depth: Mapping[str, Any]) -> Plot:
    """The relative change of each layer, and what the two halves of the change do alone."""
    heading = "How deep the change goes"
    rows = [row for row in depth.get("layers") or [] if row["relative_change"] is not None]
    if not rows:
        missing = "How much each layer changed was not measured."
        return Plot("plot-layers", heading, "", missing=missing)
    keys = {"head alone": "head_alone", "body alone": "body_alone", "both": "both"}
    halves = {name: depth[key] for name, key in keys.items() if depth.get(key) is not None}
    shown, note = rows, ""
    if len(rows) > MOST_ROWS:
        ordered = sorted(range(len(rows)), key=lambda i: (-rows[i]["relative_change"], i))
        shown = [rows[i] for i in sorted(ordered[:MOST_ROWS])]
        note = (
            f"{MOST_ROWS} of {len(rows)} layers are shown, those that changed most, in the "
            "model's order."
        )
    with style("plot-layers"):
        heights = [19 * len(shown) + 46] + ([19 * len(halves) + 46] if halves else [])
        figure = new_figure(sum(heights) + 24)
        every = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        changes = [row["relative_change"] for row in shown]
        _bars(every[0], [readable(row["name"], 30) for row in shown], changes, BLUE)
        every[0].set_title("relative change of each layer")
        every[0].set_xlim(0, max(changes) * 1.2 or 1)
        if halves:
            _bars(every[1], list(halves), list(halves.values()), ORANGE)
            every[1].set_title("error on the classes to forget that it gives")
            every[1].set_xlim(0, 1.2)
            every[1].set_xticks([0, 0.25, 0.5, 0.75, 1])
        svg = to_svg(
            figure,
            "plot-layers",
            "Relative change of each layer; effect of head and body alone",
            f"{len(shown)} layers. "
            + " ".join(f"{name}: error {words.percent(value)}." for name, value in halves.items()),
        )
    reading = (
        "Above: the norm of what was added to each tensor of weights, over the norm of what was "
        "there. Below, where it was measured: the error on the classes to forget with the changed "
        "last layer (head) on the original's body, with the original's head on the changed body, "
        "and with both. Where the head alone does all of it, the change is shallow."
    )
    return Plot("plot-layers", heading, reading, svg, note)


def _bars(axes: "Axes", names: Sequence[str], values: Sequence[float], color: str) -> None:
    axes.barh(range(len(names)), values, 0.66, color=color)
    axes.set_yticks(range(len(names)), names, fontsize=9.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    for y, value in enumerate(values):
        text = words.number(value)
        axes.annotate(text, (value, y), (3, 0), textcoords="offset points", va="center", size=9.5)
