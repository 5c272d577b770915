"""Sections of the page about answers, a head at a time, and about the quarantine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from raybert.data.reporting.blocks import (
    Figures,
    bar,
    count,
    escape,
    number,
    section,
    share,
    size,
    table,
    word,
)
from raybert.data.reporting.examples import TEXT_CHARACTERS

_HUES = 6
_OPEN = 2  # labels whose examples stand open


def answers(f: Figures) -> str:
    """All heads' answers."""
    shown = "".join(_head(f, at) for at in range(len(f.get("heads"))))
    return section("answers", "Answers", shown)


def _head(f: Figures, at: int) -> str:
    path = f"heads.{at}.answers"
    body = _KINDS[f.get(f"{path}.kind")](f, path)
    title = f"{f(f'heads.{at}.name', word)} <small>{f(f'heads.{at}.task', word)}</small>"
    return section(f"head-{at}", title, body, level=3)


def _labels(f: Figures, path: str) -> str:
    rows = [
        [*_label(f, f"{path}.labels.{at}"), f(f"{path}.labels.{at}.mean_score", number)]
        for at in range(len(f.get(f"{path}.labels")))
    ]
    heads = ("label", "rows", "share", "mean score")
    shown = table(heads, rows, numeric=(1, 2, 3), caption=f"Labels of {f(f'{path}.rows')} rows.") + _rest(f, path)
    drawn = f.histogram(f"{path}.scores", "Scores of the labels that were given.", xlabel="score", noun="rows")
    return (
        _beside(shown, drawn)
        + _by_label(f, path)
        + _examples(f, f"{path}.lowest", "Least sure: the lowest scores", _scored, open_=True)
    )


def _many_labels(f: Figures, path: str) -> str:
    rows = [_label(f, f"{path}.labels.{at}") for at in range(len(f.get(f"{path}.labels")))]
    caption = (
        f"Labels of {f(f'{path}.rows')} rows, {f(f'{path}.of_row.mean', number)} a row; "
        f"{f(f'{path}.without')} rows have none."
    )
    shown = table(("label", "rows", "of all rows"), rows, numeric=(1, 2), caption=caption)
    return shown + _rest(f, path) + _by_label(f, path)


def _numbers(f: Figures, path: str) -> str:
    drawn = f.histogram(f"{path}.scores", "Scores of all rows.", xlabel="score", noun="rows")
    return (
        _beside(_moments(f, f"{path}.scores", f"Scores of {f(f'{path}.rows')} rows"), drawn)
        + _examples(f, f"{path}.highest", "Highest", _scored, open_=True)
        + _examples(f, f"{path}.lowest", "Lowest", _scored, open_=True)
    )


def _entities(f: Figures, path: str) -> str:
    labels = f.get(f"{path}.labels")
    rows = [
        [
            *_label(f, f"{path}.labels.{at}", hue=at),
            ", ".join(
                f"{f.text(f'{path}.labels.{at}.texts.{each}.text')}&nbsp;"
                f'<small class="q">{f(f"{path}.labels.{at}.texts.{each}.count")}</small>'
                for each in range(len(label["texts"]))
            ),
        ]
        for at, label in enumerate(labels)
    ]
    caption = (
        f"{f(f'{path}.entities')} entities in {f(f'{path}.rows')} rows; {f(f'{path}.without')} rows have none."
        + ("" if f.get(f"{path}.texts_exact") else " Counts of texts are lower bounds.")
    )
    shown = table(("label", "entities", "share", "most frequent"), rows, numeric=(1, 2), caption=caption)
    hues = {label["label"]: at % _HUES for at, label in enumerate(labels)}
    drawn = f.histogram(f"{path}.scores", "Scores of all entities.", xlabel="score", noun="entities")
    return shown + _rest(f, path) + f'<div class="drawings">{drawn}</div>' + _by_label(f, path, hues)


def _spans(f: Figures, path: str) -> str:
    drawn = f.histogram(f"{path}.scores", "Scores of the best answers.", xlabel="score", noun="rows")
    words = f"Best answers of {f(f'{path}.rows')} rows; {f(f'{path}.without')} have none"
    return (
        _beside(_moments(f, f"{path}.scores", words), drawn)
        + _examples(f, f"{path}.examples", "A sample", _answered, open_=True)
        + _examples(f, f"{path}.lowest", "Least sure: the lowest scores", _answered)
    )


def _words(f: Figures, path: str) -> str:
    rows = [
        [f.text(f"{path}.tokens.{at}.text"), f(f"{path}.tokens.{at}.count")]
        for at in range(len(f.get(f"{path}.tokens")))
    ]
    caption = f"Best words of {f(f'{path}.masks')} masks; {f(f'{path}.without')} of {f(f'{path}.rows')} rows have none."
    drawn = f.histogram(f"{path}.scores", "Scores of the best words.", xlabel="score", noun="masks")
    shown = table(("word", "masks"), rows, numeric=(1,), caption=caption)
    return _beside(shown, drawn) + _examples(f, f"{path}.examples", "A sample", _filled, open_=True)


def _vectors(f: Figures, path: str) -> str:
    what = "a token" if f.get(f"{path}.of_tokens") else "a row"
    rows = [
        ["vectors", f(f"{path}.vectors")],
        ["numbers in each", f(f"{path}.dimensions")],
        ["of zeros", f"{f(f'{path}.zero')} ({f(f'{path}.zero_share', share)})"],
        ["not finite", f"{f(f'{path}.non_finite')} ({f(f'{path}.non_finite_share', share)})"],
        *([name, f(f"{path}.lengths.{key}", _exact)] for name, key in _LENGTHS),
    ]
    caption = (
        f"One vector {what}; looked at: {f(f'{path}.rows')} rows of {f(f'{path}.parts')} parts, evenly spread over "
        f"all {f('summary.parts')}."
    )
    lengths = f.get(f"{path}.lengths")
    is_constant = lengths["count"] == 0 or lengths["max"] - lengths["min"] < 1e-3 * lengths["max"]
    drawn = (
        "" if is_constant else f.histogram(f"{path}.lengths", "Lengths of vectors.", xlabel="length", noun="vectors")
    )
    return _beside(table(("", ""), rows, numeric=(1,), caption=caption), drawn)


_LENGTHS = (("least length", "min"), ("mean length", "mean"), ("greatest length", "max"))


def _sparse(f: Figures, path: str) -> str:
    rows = [
        ["rows", f(f"{path}.rows")],
        ["without a word", f(f"{path}.empty")],
        ["fewest words", f(f"{path}.words.min", number)],
        ["mean", f(f"{path}.words.mean", number)],
        ["most words", f(f"{path}.words.max", number)],
    ]
    drawn = f.histogram(f"{path}.weights", "Weights of words.", xlabel="weight", noun="words")
    return _beside(table(("", ""), rows, numeric=(1,), caption="Words of rows."), drawn)


_KINDS: Mapping[str, Callable[[Figures, str], str]] = {
    "entities": _entities,
    "labels": _labels,
    "multi-label": _many_labels,
    "number": _numbers,
    "spans": _spans,
    "sparse": _sparse,
    "vectors": _vectors,
    "words": _words,
}


def _exact(value: float) -> str:
    return f"{value:.7g}"


def _beside(left: str, drawn: str) -> str:
    return f'<div class="beside"><div>{left}</div>{drawn}</div>'


def _moments(f: Figures, path: str, words: str) -> str:
    rows = [[name, f(f"{path}.{key}", number)] for name, key in (("least", "min"), ("mean", "mean"), ("most", "max"))]
    rows.append(["not finite", f(f"{path}.non_finite")])
    return table(("", ""), rows, numeric=(1,), caption=f"{words}.")


def _label(f: Figures, path: str, hue: int | None = None) -> list[str]:
    name = f.text(f"{path}.label")
    if hue is not None:
        name = f'<mark class="h{hue % _HUES}">{name}</mark>'
    return [name, f(f"{path}.count"), bar(f.get(f"{path}.share")) + f(f"{path}.share", share)]


def _rest(f: Figures, path: str) -> str:
    """What a table of labels leaves out."""
    said = []
    many, shown = f.get(f"{path}.distinct"), len(f.get(f"{path}.labels"))
    if many > shown:
        said.append(f"The most frequent of {f(f'{path}.distinct')} labels.")
    if not f.get(f"{path}.exact"):
        said.append("There were too many to count each one: these counts are lower bounds.")
    if never := f.get(f"{path}.never"):
        said.append(f"Never given: {', '.join(f.text(f'{path}.never.{at}') for at in range(len(never)))}.")
    return f'<p class="note">{" ".join(said)}</p>' if said else ""


def _by_label(f: Figures, path: str, hues: Mapping[str, int] | None = None) -> str:
    """Examples of each label."""
    shown = ""
    for at, label in enumerate(f.get(f"{path}.labels")):
        if label["examples"]:
            title = f"Examples: {f.text(f'{path}.labels.{at}.label')}"

            def render(f: Figures, path: str) -> str:
                return _labelled(f, path, hues)

            shown += _examples(f, f"{path}.labels.{at}.examples", title, render, open_=at < _OPEN)
    return shown


def _examples(f: Figures, path: str, title: str, render: Callable[[Figures, str], str], *, open_: bool = False) -> str:
    many = len(f.get(path))
    if not many:
        return ""
    inside = "".join(f"<li>{render(f, f'{path}.{at}')}</li>" for at in range(many))
    opened = " open" if open_ else ""
    return f'<details class="examples"{opened}><summary>{title}</summary><ul>{inside}</ul></details>'


def _labelled(f: Figures, path: str, hues: Mapping[str, int] | None) -> str:
    row = f.get(path)
    if "entities" in row:
        body = _marked(f, path, hues or {})
        return f"{body}{_where(f, path)}"
    if "labels" in row:
        chips = [f'<span class="chip">{f.text(f"{path}.labels.{at}")}</span>' for at in range(len(row["labels"]))]
        return f"{_text(f, path)}<p>{' '.join(chips)}</p>{_where(f, path)}"
    return _scored(f, path, label=False)


def _scored(f: Figures, path: str, label: bool = True) -> str:
    row = f.get(path)
    named = f'<span class="chip">{f.text(f"{path}.label")}</span> ' if label and row.get("label") is not None else ""
    score = f'<span class="score">{named}{f(f"{path}.score", number)}</span>'
    return f"{score}{_text(f, path)}{_where(f, path)}"


def _answered(f: Figures, path: str) -> str:
    answer = f.text(f"{path}.answer") if f.get(f"{path}.answer") else "<em>no answer</em>"
    score = f'<span class="score">{f(f"{path}.score", number)}</span>'
    return f'{score}{_text(f, path)}<p class="answer">{answer}</p>{_where(f, path)}'


def _filled(f: Figures, path: str) -> str:
    masks = ""
    for at, fills in enumerate(f.get(f"{path}.masks")):
        words = " ".join(
            f'<span class="chip">{f.text(f"{path}.masks.{at}.{each}.token")} '
            f'<small class="q">{f(f"{path}.masks.{at}.{each}.score", number)}</small></span>'
            for each in range(len(fills))
        )
        masks += f"<p>{words}</p>"
    return f"{f.text(f'{path}.filled', tag='p', classes='text')}{masks}{_where(f, path)}"


def _text(f: Figures, path: str) -> str:
    row = f.get(path)
    shown = "" if row.get("text") is None else f.text(f"{path}.text", tag="p", classes="text")
    return shown + ("" if row.get("pair") is None else f.text(f"{path}.pair", tag="p", classes="text"))


def _where(f: Figures, path: str) -> str:
    kept = "".join(
        f" · {f(f'{path}.kept.{at}.name', word)} {f.text(f'{path}.kept.{at}.value')}"
        for at in range(len(f.get(path).get("kept", ())))
    )
    return f'<p class="where">{f.text(f"{path}.file", classes="path")} · row {f(f"{path}.row")}{kept}</p>'


def _marked(f: Figures, path: str, hues: Mapping[str, int]) -> str:
    """A text with its entities marked; where there is no text, the entities alone."""
    row: Mapping[str, Any] = f.get(path)
    more = f' <span class="q">and {f(f"{path}.more")} more</span>' if row["more"] else ""
    placed = [each for each in row["entities"] if each["start"] is not None]
    if row["text"] is None or len(placed) < len(row["entities"]):
        chips = " ".join(
            f'<mark class="h{hues.get(each["label"], 0)}" data-label="{escape(each["label"])}">'
            f"{f.text(f'{path}.entities.{at}.text')}</mark>"
            for at, each in enumerate(row["entities"])
        )
        return f"{_text(f, path)}<p>{chips}{more}</p>"
    text, end, pieces = row["text"], 0, []
    for each in placed:
        begin, stop = each["start"] - row["text_begin"], each["end"] - row["text_begin"]
        if begin < end or stop > min(len(text), TEXT_CHARACTERS):
            continue
        inside = escape(text[begin:stop])
        mark = f'<mark class="h{hues.get(each["label"], 0)}" data-label="{escape(each["label"])}">{inside}</mark>'
        pieces += [escape(text[end:begin]), mark]
        end = stop
    pieces.append(escape(text[end:]))
    return f'<p class="text" dir="auto" data-figure="{path}.text">{"".join(pieces)}</p>{more}'


def quarantine(f: Figures) -> str:
    """Rows that could not be processed, by reason."""
    if not f.get("quarantine.rows"):
        return section("quarantine", "Quarantine", "<p>No row was quarantined.</p>")
    reasons = range(len(f.get("quarantine.reasons")))
    rows = [
        [
            f"<code>{f(f'quarantine.reasons.{at}.reason', word)}</code>",
            f(f"quarantine.reasons.{at}.count"),
            bar(f.get(f"quarantine.reasons.{at}.share")) + f(f"quarantine.reasons.{at}.share", share),
            f(f"quarantine.reasons.{at}.meaning", word),
        ]
        for at in reasons
    ]
    caption = (
        f"{f('quarantine.rows', count)} rows, {f('summary.quarantined_share', share)} of all, in "
        f"<code>_quarantine/</code> ({f('summary.quarantine_bytes', size)})."
    )
    shown = table(("reason", "rows", "share", "meaning"), rows, numeric=(1, 2), caption=caption)
    for at in reasons:
        title = f"Examples: <code>{f(f'quarantine.reasons.{at}.reason', word)}</code>"
        shown += _examples(f, f"quarantine.reasons.{at}.examples", title, _bad, open_=at < _OPEN)
    return section("quarantine", "Quarantine", shown)


def _bad(f: Figures, path: str) -> str:
    return f"{f.text(f'{path}.detail', tag='p', classes='detail')}{_text(f, path)}{_where(f, path)}"
