"""``raybert report``: write a run's report, and say in one line where it is and what it holds."""

from __future__ import annotations

import sys

from raybert.cli.words import counted
from raybert.data.report import PAGE, report
from raybert.data.store import Store


def report_and_show(output: str) -> None:
    """Write the report; its place and main counts go to stdout."""
    store = Store(output)
    summary = report(store)["summary"]
    problems = summary["problems"]
    state = "nothing is missing" if summary["verified"] else f"{counted(problems, 'problem')}, see raybert verify"
    sys.stdout.write(
        f"{store.place(PAGE)}: {counted(summary['rows'], 'row')} in = {summary['ok']:,} ok + "
        f"{summary['quarantined']:,} quarantined + {summary['filtered']:,} filtered, "
        f"{counted(summary['parts'], 'part')}, {counted(summary['tokens'], 'token')}; {state}\n"
    )
