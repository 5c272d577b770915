"""Sections of the page about the run as a whole: summary, heads, time, lengths, input, settings."""

from __future__ import annotations

from raybert.data.reporting.blocks import (
    Figures,
    bar,
    escape,
    number,
    seconds,
    section,
    share,
    size,
    table,
    tiles,
    word,
)

_DRAWN_SESSIONS = 4
_STAGES = {"read": "reading", "encode": "tokenizing", "model": "model", "write": "writing"}


def summary(f: Figures) -> str:
    """The run in one sentence, whether anything is missing, and its largest figures."""
    filtered = f", {f('summary.filtered_share', share)} filtered out" if f.get("summary.filtered") else ""
    said = (
        f"{f('summary.rows')} rows: {f('summary.ok_share', share)} ok, "
        f"{f('summary.quarantined_share', share)} quarantined{filtered}."
    )
    if f.get("summary.verified"):
        verdict = '<p class="verdict good">Nothing is missing: every footer was verified, no row range is left out.</p>'
    else:
        rest = "".join(f"<li>{f.text(f'problems.{at}')}</li>" for at in range(len(f.get("problems"))))
        verdict = (
            f'<div class="verdict bad"><p>Not complete: {f("summary.problems")} problems. '
            f"The figures below are those of the parts that are there.</p><ul>{rest}</ul></div>"
        )
    pairs = [
        ("rows", f("summary.rows")),
        ("ok", f("summary.ok")),
        ("quarantined", f("summary.quarantined")),
        ("filtered out", f("summary.filtered")),
        ("tokens", f("summary.tokens")),
        ("parts", f("summary.parts")),
        ("written", f("summary.bytes", size)),
        ("input files", f("summary.files")),
    ]
    return f'<p class="lead">{said}</p>{verdict}{tiles(pairs)}'


def heads(f: Figures) -> str:
    """The heads: what they are, tokens, truncation."""
    rows = [
        [
            f'<a href="#head-{at}">{f(f"heads.{at}.name", word)}</a>',
            f(f"heads.{at}.task", word),
            f.text(f"heads.{at}.model", classes="path"),
            f"<code>{f(f'heads.{at}.fingerprint_prefix', word)}</code>",
            f(f"heads.{at}.max_length"),
            f(f"heads.{at}.lengths.mean", number),
            f(f"heads.{at}.lengths.max", number),
            f(f"heads.{at}.truncated_share", share),
        ]
        for at in range(len(f.get("heads")))
    ]
    names = ("head", "task", "model", "fingerprint", "max length", "mean tokens", "most tokens", "truncated")
    engine = (
        f'<p class="note">Computed with {f("engine.dtype", word)} on {f("engine.device", word)} '
        f"by raybert {f('engine.versions.raybert', word)}.</p>"
        if {"dtype", "device", "versions"} <= f.get("engine").keys()
        else ""
    )
    return section("heads", "Heads", table(names, rows, numeric=(4, 5, 6, 7)) + engine)


def times(f: Figures) -> str:
    """Speed over time, stages, bottleneck, plan."""
    if not f.get("times.known"):
        text = "<p>This folder has no history (<code>_raybert/history.json</code>), so nothing is known of times.</p>"
        return section("time", "Time", text)
    body = _bottleneck(f) + _sessions(f) + _paces(f) + _stages(f) + _plans(f)
    return section("time", "Time", body)


def _bottleneck(f: Figures) -> str:
    if f.get("times.bottleneck") is None:
        return ""
    verdict, advice = f("times.bottleneck.verdict", word), f("times.bottleneck.advice", word)
    busy = f("times.bottleneck.busy_running", share)
    tail = f" (busy {busy} of the time after the first commit)" if f.get("times.bottleneck.stage") else ""
    return f'<p class="callout"><strong>{verdict}</strong>{tail}. {advice}</p>'


def _sessions(f: Figures) -> str:
    rows = [
        [
            f(f"times.sessions.{at}.started", word),
            f(f"times.sessions.{at}.outcome", word),
            f(f"times.sessions.{at}.seconds", seconds),
            f(f"times.sessions.{at}.first_commit", seconds),
            f(f"times.sessions.{at}.rows"),
            f(f"times.sessions.{at}.parts"),
            f(f"times.sessions.{at}.rows_per_second", number),
            f(f"times.sessions.{at}.tokens_per_second", number),
            f(f"times.sessions.{at}.workers.model"),
        ]
        for at in range(len(f.get("times.sessions")))
    ]
    names = (
        *("started", "outcome", "to the last commit", "to the first", "rows", "parts"),
        *("rows/s", "tokens/s", "model actors"),
    )
    return table(names, rows, numeric=(2, 3, 4, 5, 6, 7, 8), caption="Sessions: each start of the run.")


def _paces(f: Figures) -> str:
    """Drawings of the sessions with most parts."""
    all_sessions = f.get("times.sessions")
    long = sorted(
        (at for at, each in enumerate(all_sessions) if each["pace"]), key=lambda at: -all_sessions[at]["parts"]
    )
    drawn = ""
    for at in sorted(long[:_DRAWN_SESSIONS]):
        path = f"times.sessions.{at}.pace"
        which = f" Session {f(f'times.sessions.{at}.number')}." if len(all_sessions) > 1 else ""
        width = f(f"{path}.bin_seconds", seconds)
        for what in ("rows", "tokens"):
            caption = f"{what.capitalize()} a second, each commit counted where it fell; bins of {width}.{which}"
            drawn += f.pace(path, f"{what}_per_second", caption)
    return f'<div class="drawings">{drawn}</div>' if drawn else ""


def _stages(f: Figures) -> str:
    rows = [
        [
            _STAGES[stage["stage"]],
            f(f"times.stages.{at}.seconds", seconds),
            bar(stage["share"]) + f(f"times.stages.{at}.share", share),
            ", ".join(f(f"times.stages.{at}.workers.{each}") for each in range(len(stage["workers"]))),
            f(f"times.stages.{at}.busy", share),
            f(f"times.stages.{at}.busy_running", share),
        ]
        for at, stage in enumerate(f.get("times.stages"))
    ]
    names = ("stage", "work", "of all work", "workers", "busy", "busy, start-up left out")
    caption = "Stages: seconds of work of all their workers, and how much of their time these were busy."
    return table(names, rows, numeric=(1, 2, 3, 4, 5), caption=caption) if rows else ""


def _plans(f: Figures) -> str:
    forms = {"seconds": seconds, "bytes": size}
    shown = ""
    for at, plan in enumerate(f.get("times.plans")):
        path = f"times.plans.{at}"
        rows = [
            [
                "time" if row["what"] == "seconds" else row["what"],
                f(f"{path}.rows.{each}.planned", forms.get(row["what"], "{:,}".format)),
                f(f"{path}.rows.{each}.measured", forms.get(row["what"], "{:,}".format)),
                f(f"{path}.rows.{each}.error", signed),
            ]
            for each, row in enumerate(plan["rows"])
        ]
        where = "inside" if plan["inside"] else "outside"
        caption = (
            f"Plan and what came, session {f(f'{path}.session')}. It said {f(f'{path}.low', seconds)} to "
            f"{f(f'{path}.high', seconds)}; the run took a time {where} of that."
        )
        shown += table(("", "planned", "measured", "plan off by"), rows, numeric=(1, 2, 3), caption=caption)
    return shown


def signed(value: float) -> str:
    """``+12.3 %``."""
    return f"{value * 100:+.1f} %"


def lengths(f: Figures) -> str:
    """Tokens of rows, and what packing saved."""
    drawn = ""
    for at, head in enumerate(f.get("heads")):
        same = next(each for each, other in enumerate(f.get("heads")) if other["lengths"] == head["lengths"])
        if same == at:
            names = ", ".join(
                f(f"heads.{each}.name", word)
                for each, other in enumerate(f.get("heads"))
                if other["lengths"] == head["lengths"]
            )
            drawn += f.histogram(
                f"heads.{at}.lengths",
                f"Tokens a row, before truncation: {names}.",
                xlabel="tokens of a row",
                noun="rows",
            )
    return section("lengths", "Lengths and packing", f'{_packing(f)}<div class="drawings">{drawn}</div>')


def _packing(f: Figures) -> str:
    if not f.get("packing.padded"):
        return ""
    rows = [
        [
            f(f"heads.{at}.name", word),
            f(f"heads.{at}.padding.tokens"),
            f(f"heads.{at}.padding.padded"),
            bar(head["padding"]["share"]) + f(f"heads.{at}.padding.share", share),
        ]
        for at, head in enumerate(f.get("heads"))
        if head["padding"]
    ]
    caption = (
        f"What padding would have cost: batches of {f('packing.batch')} rows in the input's order, each padded to its "
        "longest row. Rows longer than a window count as one full window."
    )
    names = ("head", "tokens", "padded batches", "tokens in them")
    text = ""
    if f.get("packing.forwarded") is not None:
        text = (
            f'<p class="callout">The encoders computed {f("packing.forwarded")} tokens. Head by head, in padded '
            f"batches, it would have been {f('packing.padded')}: {f('packing.saved_share', share)} was saved by "
            "packing and by windows that heads share.</p>"
        )
    return text + table(names, rows, numeric=(1, 2, 3), caption=caption)


def files(f: Figures) -> str:
    """Input files."""
    rows = [
        [
            f.text(f"files.first.{at}.path", classes="path"),
            f(f"files.first.{at}.bytes", size),
            f(f"files.first.{at}.rows_in"),
            f(f"files.first.{at}.ok"),
            f(f"files.first.{at}.quarantined"),
            f(f"files.first.{at}.filtered"),
        ]
        for at in range(len(f.get("files.first")))
    ]
    caption = f"{f('files.count')} files, {f('files.bytes', size)}; those with most quarantined rows first."
    names = ("file", "size", "rows", "ok", "quarantined", "filtered")
    return section("files", "Input", table(names, rows, numeric=(1, 2, 3, 4, 5), caption=caption))


def settings(f: Figures) -> str:
    """What the run was made with."""
    shown = ""
    for title, path in (("Settings", "settings"), ("Engine", "engine")):
        rows = [[escape(name), f.text(f"{path}.{name}")] for name in sorted(f.get(path)) if name != "versions"]
        shown += f"<details open><summary>{title}</summary>{table(('', ''), rows)}</details>"
    versions = f.get("engine").get("versions", {})
    rows = [[escape(name), f.text(f"engine.versions.{name}")] for name in sorted(versions)]
    shown += f"<details open><summary>Versions</summary>{table(('', ''), rows)}</details>"
    for at, head in enumerate(f.get("heads")):
        rows = [["fingerprint", f.text(f"heads.{at}.fingerprint", classes="path")]]
        rows += [[escape(name), f.text(f"heads.{at}.options.{name}")] for name in sorted(head["options"])]
        name = f(f"heads.{at}.name", word)
        shown += f"<details><summary>Head {name}</summary>{table(('', ''), rows)}</details>"
    return section("settings", "Made with", f'<div class="facts">{shown}</div>')
