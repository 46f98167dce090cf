"""Drawing for the report: colours, fonts, and how a figure becomes inline SVG."""

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Inches, at 72 points each: 460 points fit a telephone at 0.75 and a page at 1.3.
WIDTH = 460 / 72
# Okabe and Ito's colours, which stay apart for colour-blind readers.
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY, LIGHT, INK = "#8c8c8c", "#e4e4e4", "#1a1a1a"
# The models of a validation, as its report names them: colour, marker.
MODELS = {
    "unlearned": (BLUE, "o"),
    "original": (RED, "X"),
    "mask": (ORANGE, "s"),
    "soft-mask": (PURPLE, "D"),
    "held-out": (GREEN, "^"),
}
_LINK = re.compile(r"url\(#([^)]+)\)")
_FONT = "DejaVu Sans"  # comes with matplotlib; the page's own font then stands in its place
_STYLE = {
    "font.family": [_FONT],
    "font.size": 11,
    "text.parse_math": False,  # a class may be named $x$
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.2,
    "svg.fonttype": "none",
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Plot:
    """One figure of the page; without `svg`, `missing` says why there is none."""

    key: str
    heading: str
    reading: str  # how to read it
    svg: str = ""
    note: str = ""  # what of the data is not in it
    missing: str = ""


@contextmanager
def apply_style(key: str) -> Iterator[None]:
    """Apply matplotlib's defaults and ours, whatever the machine's own settings are."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        settings: Any = {**_STYLE, "svg.hashsalt": key}
        mpl.rcParams.update(settings)
        yield


def clean_name(name: str, most: int = 22) -> str:
    """Return a user's text on one short line, without characters that cannot be seen."""
    seen = "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in name)
    text = " ".join(unicodedata.normalize("NFC", seen).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def create_figure(height: float) -> "Figure":
    """Return an empty figure of the page's width; `height` is in points."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height / 72))


def add_legend(figure: "Figure", handles: list[Any], columns: int) -> None:
    """Add one legend for the whole figure, over it."""
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, borderaxespad=0.2)


def create_handles(names: list[str]) -> list["Line2D"]:
    """Return the legend's entries of the models."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=MODELS[n][0], marker=MODELS[n][1], linestyle="none", label=n)
        for n in names
    ]


def set_plain_ticks(axes: "Axes", which: str) -> None:
    """Write numbers such as 0.001 and 1e-06 on a logarithmic axis: SVG has no other notation."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def render_svg(figure: "Figure", key: str, title: str, description: str) -> str:
    """Return the figure as an SVG element for HTML, its ids prefixed with `key`.

    `title` and `description` are for readers who do not see it.
    """
    import io
    import warnings
    from xml.etree import ElementTree as ET

    target = io.StringIO()
    with warnings.catch_warnings():
        # the browser has the glyphs that matplotlib's font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(target, format="svg", metadata=nothing)
    root = ET.fromstring(target.getvalue())  # noqa: S314 (matplotlib's own)
    used = {name for element in root.iter() for name in _find_references(element)}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith("}style"):  # it would hold for the whole page
                parent.remove(child)
    for element in root.iter():
        _localise(element, key, used)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    names = {"title": title, "desc": description}
    for position, (tag, text) in enumerate(names.items()):
        element = ET.Element(tag, {"id": f"{key}-{tag}"})
        element.text = text
        root.insert(position, element)
    # a reader of screens says the title and the description, and no path of the drawing
    root.attrib |= {"role": "img", "aria-labelledby": f"{key}-title", "focusable": "false"}
    root.attrib["aria-describedby"] = f"{key}-desc"
    return ET.tostring(root, encoding="unicode", short_empty_elements=False)


def _find_references(element: "Element") -> Iterator[str]:
    """Yield the ids that an element refers to."""
    for name, value in element.attrib.items():
        if name.endswith("href"):
            yield value.removeprefix("#")
        yield from _LINK.findall(value)


def _localise(element: "Element", key: str, used: set[str]) -> None:
    """Drop namespaces, which HTML knows by itself, and ids that nothing uses; prefix the others."""
    element.tag = element.tag.rpartition("}")[2]
    for name, value in list(element.attrib.items()):
        del element.attrib[name]
        short = name.rpartition("}")[2]
        if short == "id":
            if value in used:
                element.set("id", f"{key}-{value}")
        elif short == "href":
            element.set("href", f"#{key}-{value.removeprefix('#')}")
        else:
            text = _LINK.sub(lambda found: f"url(#{key}-{found[1]})", value)
            element.set(short, text.replace(f"'{_FONT}'", "system-ui, sans-serif"))
