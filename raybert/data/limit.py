"""``--limit``: the first rows of the input, as read tasks that end early."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from raybert.data.csvrecords import read_records
from raybert.data.files import Inputs, open_stream, reading
from raybert.data.formats import delimiter_of
from raybert.data.lines import read_lines
from raybert.data.manifest import FilesDiff
from raybert.data.splits import InputFile, ReadTask
from raybert.errors import SettingsError


def limit_tasks(
    tasks: Mapping[int, tuple[ReadTask, ...]], limit: int, inputs: Inputs
) -> dict[int, tuple[ReadTask, ...]]:
    """Cut the tasks down to the first ``limit`` rows, in the order of file numbers.

    Rows of streamed files are counted by their lines, as far as the limit reaches and no further.

    Args:
        tasks: all read tasks by file number.
        limit: rows to read in all, at least 1.
        inputs: where the files lie.
    """
    kept: dict[int, tuple[ReadTask, ...]] = {}
    left = limit
    for number, of_file in tasks.items():
        if left == 0:
            break
        rows = of_file[-1].end
        if rows is None:
            rows = _count_lines(inputs, of_file[0].file, left)
        end = min(rows, left)
        cut = [
            replace(task, end=min(end, task.end if task.end is not None else end), closes_file=False)
            for task in of_file
            if task.begin < end or task is of_file[0]
        ]
        cut[-1] = replace(cut[-1], closes_file=True)
        kept[number] = tuple(cut)
        left -= end
    return kept


def within_limit(diff: FilesDiff, tasks: Mapping[int, tuple[ReadTask, ...]]) -> FilesDiff:
    """Leave files that the limit doesn't reach out of the run.

    Args:
        diff: the input's files against the manifest's.
        tasks: what `limit_tasks` gave.

    Raises:
        SettingsError: a file changed or is gone: the limit would now end elsewhere than the parts that are there.
    """
    for file in (*diff.changed, *diff.vanished, *diff.dropped):
        raise SettingsError(
            f"limit: input file {file.path} changed or is gone since the run began, and a limit counts the rows of "
            "all files; start anew with --overwrite"
        )
    return replace(diff, files=tuple(file for file in diff.files if file.number in tasks))


def _count_lines(inputs: Inputs, file: InputFile, enough: int) -> int:
    """Rows of a streamed file, counted up to ``enough``."""
    is_csv = inputs.format == "csv"
    count = -1 if is_csv else 0  # the header is no row
    with reading(inputs.root.show(file)), open_stream(inputs.root, file) as stream:
        if is_csv:
            blocks = read_records(stream, delimiter_of(file.path))
        else:
            blocks = read_lines(stream, blank_rows=inputs.format == "text")
        for lines in blocks:
            count += len(lines.sizes)
            if count >= enough:
                return enough
    return max(count, 0)
