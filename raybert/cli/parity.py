"""``raybert parity``: what a comparison found, in lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from raybert.cli.words import counted
from raybert.data.parity import Compared, ParityReport, parity
from raybert.errors import SettingsError


def compare_and_show(
    output: str, *, rows: int, seed: int, input_uri: str | None, models: Sequence[str], url: str | None
) -> bool:
    """Compare a run's rows; what differs goes to stderr, the figures to stdout.

    Returns:
        Whether nothing differs.
    """
    report = parity(
        output,
        rows=rows,
        seed=seed,
        input=input_uri,
        models=model_places(models),
        url=url,
        api_key=os.environ.get("RAYBERT_API_KEY"),
    )
    for line in (*report.notes, *report.left_out):
        sys.stderr.write(f"raybert: {line}\n")
    compared = (*report.heads, report.input)
    for each in compared:
        for difference in each.first:
            sys.stderr.write(f"{each.name}: {difference}\n")
    sys.stdout.write("".join(f"{line}\n" for line in (*map(figures, report.heads), summary(report))))
    return report.ok


def model_places(words: Sequence[str]) -> dict[str, str]:
    """``NAME=PATH`` words as a dict.

    Raises:
        SettingsError: a word of another form, or a name twice.
    """
    places: dict[str, str] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not (name and equals and path):
            raise SettingsError(f"model {word!r}: write NAME=PATH, NAME being a head of the run")
        if name in places:
            raise SettingsError(f"model {word!r}: {name} is named twice")
        places[name] = path
    return places


def figures(head: Compared) -> str:
    """A head in one line."""
    parts = [f"{head.name}: {counted(head.rows, 'row')}"]
    if head.worst_cosine is not None:
        parts.append(f"worst cosine {head.worst_cosine:.7f} (at least {head.tolerance.cosine:g})")
    if head.largest_difference is not None:
        parts.append(f"largest score difference {head.largest_difference:.2g} (at most {head.tolerance.score:g})")
    parts.append(f"{head.differing:,} differ" if head.differing else "none differs")
    return ", ".join(parts)


def summary(report: ParityReport) -> str:
    """The last line."""
    bad = [f"{each.differing:,} of {each.name}" for each in (*report.heads, report.input) if each.differing]
    verdict = f"rows differ: {', '.join(bad)}" if bad else "ok"
    return f"{verdict}: {counted(report.rows, 'row')} of {counted(report.parts, 'part')}"
