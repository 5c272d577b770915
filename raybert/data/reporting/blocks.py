"""What the page is made of: figures with their place in report.json, escaped texts, tables, bars.

Every number and every word of the input that the page shows goes through `Figures`, which looks it up in the report
and marks it: ``<span data-figure="summary.rows">`` holds what stands there. So the page can't show another figure.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raybert.data.reporting import figures

NONE = "–"  # noqa: RUF001  what tables have where there is no figure
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def escape(text: str) -> str:
    """A text as HTML: inert, with control characters, those that turn the direction of writing too, made visible.

    They are shown as ``⟨202E⟩``: a browser would drop or obey them.
    """
    return html.escape(_UNSAFE.sub(lambda found: f"⟨{ord(found[0]):04X}⟩", text))


def count(value: float) -> str:
    """``1,234``."""
    return f"{value:,}"


def share(value: float) -> str:
    """``12.3 %``, with as many digits as tell it from all and from nothing."""
    percent = value * 100
    for digits in range(1, 7):
        shown = f"{percent:.{digits}f}"
        if float(shown) not in (0.0, 100.0) or percent in (0.0, 100.0):
            return f"{shown.removesuffix('.0') if percent in (0.0, 100.0) else shown} %"
    return f"{percent:.3g} %"


def seconds(value: float) -> str:
    """``12.3 s``, ``4.5 min``, ``6.7 h``."""
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def size(value: float) -> str:
    """``97.6 MiB``."""
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    power = min(len(units) - 1, (max(1, int(value)).bit_length() - 1) // 10)
    return f"{value:.0f} B" if power == 0 else f"{value / 1024**power:.1f} {units[power]}"


def number(value: float) -> str:
    """Four digits."""
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def word(value: Any) -> str:
    """A text as it stands; anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class Figures:
    """The report's figures as HTML.

    Args:
        report: as report.json holds it.
    """

    def __init__(self, report: Mapping[str, Any]) -> None:
        self._report = report

    def get(self, path: str) -> Any:
        """What stands at a path: keys and numbers joined by dots."""
        value: Any = self._report
        for key in path.split(".") if path else ():
            value = value[int(key)] if isinstance(value, list) else value[key]
        return value

    def __call__(self, path: str, form: Callable[[Any], str] = count) -> str:
        """The figure at a path in some form; a dash where there is none."""
        value = self.get(path)
        shown = NONE if value is None else form(value)
        return f'<span data-figure="{html.escape(path)}">{escape(shown)}</span>'

    def text(self, path: str, *, tag: str = "bdi", classes: str = "") -> str:
        """A text of the input or of an answer, its direction kept to itself."""
        shown = self(path, word).replace("<span", f'<{tag} dir="auto" class="{classes}"', 1)
        return f"{shown.removesuffix('</span>')}</{tag}>"

    def _title(self, words: str, paths: Mapping[str, Callable[[Any], str]]) -> str:
        shown = words.format(*(form(self.get(path)) for path, form in paths.items()))
        return f'<title data-figures="{html.escape(" ".join(paths))}">{html.escape(shown)}</title>'

    def histogram(self, path: str, caption: str, *, xlabel: str, noun: str) -> str:
        """A drawing of the histogram at a path; nothing where it is empty."""
        edges, counts = self.get(f"{path}.edges"), self.get(f"{path}.counts")
        if not counts:
            return ""
        titles = [
            self._title(
                f"{{}} {noun}, from {{}} to {{}}",
                {f"{path}.counts.{at}": count, f"{path}.edges.{at}": plain, f"{path}.edges.{at + 1}": plain},
            )
            for at in range(len(counts))
        ]
        name = f"{xlabel} {path}"
        drawn = figures.histogram(edges, counts, name=name, titles=titles, xlabel=xlabel, ylabel=noun)
        return figure(drawn, caption)

    def pace(self, path: str, what: str, caption: str) -> str:
        """A drawing of a session's speed."""
        rates = self.get(f"{path}.{what}")
        words = what.partition("_")[0]
        titles = [self._title(f"{{}} {words} a second", {f"{path}.{what}.{at}": number}) for at in range(len(rates))]
        width = self.get(f"{path}.bin_seconds")
        return figure(
            figures.pace(rates, width, name=f"{words} a second {path}", titles=titles, ylabel=f"{words} a second"),
            caption,
        )


def plain(value: float) -> str:
    """A bin's edge."""
    return f"{value:.6g}"


def figure(drawing: str, caption: str) -> str:
    """A drawing with its caption."""
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"


def bar(value: float) -> str:
    """A bar for a share; the number stands beside it."""
    return f'<span class="bar" aria-hidden="true"><i style="width:{min(1.0, max(0.0, value)) * 100:.2f}%"></i></span>'


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "", numeric: Sequence[int] = ()
) -> str:
    """A table that scrolls by itself where the page is narrow.

    Args:
        heads: of the columns.
        rows: cells, as HTML.
        caption: above it, as HTML.
        numeric: columns that are aligned to the right.
    """
    classes = ['class="n"' if at in numeric else "" for at in range(len(heads))]
    top = "".join(f'<th scope="col" {each}>{head}</th>' for head, each in zip(heads, classes, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td {each}>{cell}</td>" for cell, each in zip(row, classes, strict=True)) + "</tr>"
        for row in rows
    )
    above = f'<p class="caption">{caption}</p>' if caption else ""  # a <caption> would scroll away with the table
    inside = f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return f'{above}<div class="scroll" tabindex="0"><table>{inside}</table></div>'


def tiles(pairs: Sequence[tuple[str, str]]) -> str:
    """Large figures with what they are."""
    inside = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in pairs)
    return f'<dl class="tiles">{inside}</dl>'


def section(identity: str, title: str, body: str, *, level: int = 2) -> str:
    """A part of the page with a heading that can be linked to."""
    heading = f'<h{level} id="{identity}"><a href="#{identity}">{title}</a></h{level}>'
    return f'<section aria-labelledby="{identity}">{heading}{body}</section>'
