"""Drawings of a report: small SVGs that take their colours and letters from the page.

matplotlib draws them; what it says about fonts and colours is replaced by the page's own variables, so that one
drawing serves light, dark and paper. No word of a row enters a drawing.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

_WIDTH_IN, _HEIGHT_IN = 4.7, 1.85
_COLOURS = {"#0a0b0c": "var(--muted)", "#a1b2c3": "var(--accent)", "#d4e5f6": "var(--line)"}
_INK, _BAR, _LINE = _COLOURS
_SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "raybert", "font.size": 8.0}
_BAR_ID = "bar-"
_MOST_TICKS = 9


@contextmanager
def _settings() -> Iterator[None]:
    """Draw as matplotlib comes, whatever this machine's own settings are, for the length of the block."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


@_settings()
def histogram(
    edges: Sequence[float], counts: Sequence[int], *, name: str, titles: Sequence[str], xlabel: str, ylabel: str
) -> str:
    """Bars of equal width, whatever their bins are, with the bins' edges below.

    Args:
        edges: one more than counts.
        counts: heights.
        name: what a reader that can't see is told.
        titles: a whole ``<title>`` element for each bar.
        xlabel: below the axis.
        ylabel: above the other one.
    """
    figure, axes = _axes(xlabel, ylabel)
    bars = axes.bar(range(len(counts)), counts, width=0.88, align="edge", color=_BAR, linewidth=0)
    for number, bar in enumerate(bars):
        bar.set_gid(f"{_BAR_ID}{number}")
    step = -(-len(edges) // _MOST_TICKS)
    places = range(0, len(edges), step)
    axes.set_xticks([place - 0.06 for place in places], [f"{edges[place]:g}" for place in places])
    axes.set_xlim(-0.2, len(counts) + 0.1)
    return _svg(figure, name, titles)


@_settings()
def pace(rates: Sequence[float], bin_seconds: float, *, name: str, titles: Sequence[str], ylabel: str) -> str:
    """Speed over time, a bar for each bin of time."""
    figure, axes = _axes("seconds since the start", ylabel)
    starts = [number * bin_seconds for number in range(len(rates))]
    bars = axes.bar(starts, rates, width=bin_seconds * 0.92, align="edge", color=_BAR, linewidth=0)
    for number, bar in enumerate(bars):
        bar.set_gid(f"{_BAR_ID}{number}")
    axes.set_xlim(0, len(rates) * bin_seconds)
    return _svg(figure, name, titles)


def _axes(xlabel: str, ylabel: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN))
    axes = figure.add_axes((0.105, 0.2, 0.885, 0.68))
    axes.set_axisbelow(True)
    axes.grid(visible=True, axis="y", color=_LINE, linewidth=0.6)
    axes.tick_params(length=0, labelcolor=_INK, pad=3)
    axes.set_xlabel(xlabel, color=_INK, labelpad=2)
    axes.text(-0.01, 1.06, ylabel, transform=axes.transAxes, color=_INK, ha="right" if len(ylabel) < 6 else "left")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(_short))
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_LINE)
    for patch in (figure.patch, axes.patch):
        patch.set_visible(False)
    return figure, axes


def _short(value: float, position: int | None) -> str:
    """A number of an axis: ``1.5k``, ``20M``."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _svg(figure: Any, name: str, titles: Sequence[str]) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    drawn = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(drawn, metadata=nothing)
    root = ElementTree.fromstring(drawn.getvalue())  # noqa: S314  matplotlib's own
    _tidy(root, re.sub(r"\W+", "-", name))
    for number, title in enumerate(titles):
        group = next(each for each in root.iter("g") if each.get("data-bar") == f"{_BAR_ID}{number}")
        del group.attrib["data-bar"]
        group.insert(0, ElementTree.fromstring(title))  # noqa: S314  made by the caller, of numbers
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": name}
    return ElementTree.tostring(root, encoding="unicode")


def _tidy(root: ElementTree.Element, prefix: str) -> None:
    """Namespaces, ids, colours and fonts as a page that holds many drawings needs them."""
    root[:] = [child for child in root if not (child.tag.endswith("defs") and child.find("*[@type]") is not None)]
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes: dict[str, str] = {}
        for name, value in element.attrib.items():
            local = name.rpartition("}")[2]
            if local == "id" and element.tag == "g":
                if value.startswith(_BAR_ID):
                    attributes["data-bar"] = value
                continue
            attributes[local] = _referring(local, value, prefix)
        element.attrib = attributes
        element.text, element.tail = (text if text and text.strip() else None for text in (element.text, element.tail))


def _referring(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href":
        return f"#{prefix}-{value.removeprefix('#')}"
    if name == "clip-path":
        return value.replace("url(#", f"url(#{prefix}-")
    if name == "style":
        for sentinel, colour in _COLOURS.items():
            value = value.replace(sentinel, colour)
        return re.sub(r"font-family: [^;]*;? ?", "", value)
    return value
