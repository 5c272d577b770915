"""The page: one file of HTML that loads nothing, runs nothing, and shows nothing that is not in report.json."""

from __future__ import annotations

import html
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from raybert.data.reporting import sections, sections_answers
from raybert.data.reporting.blocks import Figures, word

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

_LINKS = (
    ("heads", "Heads"),
    ("time", "Time"),
    ("lengths", "Lengths"),
    ("answers", "Answers"),
    ("quarantine", "Quarantine"),
    ("files", "Input"),
    ("settings", "Made with"),
)


def make_page(report: Mapping[str, Any]) -> str:
    """The page of a report.

    Args:
        report: as report.json holds it.
    """
    f = Figures(report)
    style = files("raybert.data.reporting").joinpath("page.css").read_text(encoding="utf-8")
    links = "".join(f'<a href="#{identity}">{title}</a>' for identity, title in _LINKS)
    body = "".join(
        (
            sections.heads(f),
            sections.times(f),
            sections.lengths(f),
            sections_answers.answers(f),
            sections_answers.quarantine(f),
            sections.files(f),
            sections.settings(f),
        )
    )
    title = f'<title data-figure="title">{html.escape(report["title"])}</title>'
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"{title}<style>{style}</style></head><body>"
        f'<header><p class="brand">raybert <span>report of a run</span></p><h1>{f("title", word)}</h1>'
        f'{sections.summary(f)}</header><nav aria-label="Sections">{links}</nav><main>{body}</main>'
        "<footer><p>Every figure of this page stands in <code>report.json</code> beside it. Examples are those rows "
        "whose file and row number have the smallest hashes: a fair sample, the same in every report of this "
        "folder.</p></footer></body></html>\n"
    )
