"""The columns of files of lines: JSON lines and CSV are sampled, plain text has one.

The sample is the first ``SAMPLE_ROWS`` rows of each file, and only ``LATER_ROWS`` once ``SAMPLE_BYTES`` have been read.
With ``all``, the columns of JSON lines are those of the sample: a key that comes up later is not kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pyarrow as pa

from raybert.data.arrowtypes import LISTS
from raybert.data.asked import Asked, Found, no_column, no_rows, not_text, part_field
from raybert.data.csvrecords import read_records
from raybert.data.csvrows import SeenFields, parse, read_header
from raybert.data.files import Inputs, open_stream, reading
from raybert.data.formats import delimiter_of
from raybert.data.jsonl import decode_line
from raybert.data.jsonvalues import SeenValues, is_unicode
from raybert.data.lines import LINE_LIMIT, read_lines
from raybert.data.splits import InputFile
from raybert.errors import InputError

SAMPLE_ROWS = 10_000
"""Rows of each file that decide the types."""

SAMPLE_BYTES = 256 << 20
"""After this much has been read, further files give ``LATER_ROWS`` each."""

LATER_ROWS = 100

TEXT_COLUMN = "text"
"""The one column of plain text files."""


def text_columns(inputs: Inputs, asked: Asked) -> Found:
    """Of plain text: there is one column, and it is a string."""
    if asked.pair_column is not None:
        raise InputError(
            f"{inputs.root.shown}: plain text has the one column {TEXT_COLUMN!r} and no pair column "
            f"{asked.pair_column!r}; write Parquet or JSON lines"
        )
    kept = (TEXT_COLUMN,) if isinstance(asked.keep, str) else asked.keep
    for name in (*asked.needed, *kept):
        if name != TEXT_COLUMN:
            raise no_column(name, inputs.root.shown, [TEXT_COLUMN])

    def fields(names: tuple[str, ...]) -> list[pa.Field]:
        return [pa.field(name, pa.string()) for name in names]

    for file in inputs.files:
        if next(_head(inputs, file, 1), None) is not None:
            return Found(pa.string(), None, fields(kept), fields(asked.parts), fields(asked.filtering))
    raise no_rows(inputs)


def jsonl_columns(inputs: Inputs, asked: Asked) -> Found:
    """Types by the sample; of text and pair column only what can be read counts, all else is a row's fault."""
    shown = inputs.root.shown
    seen, rows = _sample(inputs)
    if rows == 0:
        raise no_rows(inputs)
    if not seen:
        remedy = "raybert reads JSON lines, one object a line"
        raise InputError(f"{shown}: none of the first {rows} rows is a JSON object with a key; {remedy}")
    kept = tuple(seen) if isinstance(asked.keep, str) else asked.keep
    for name in (*asked.needed, *kept):
        if name not in seen:
            raise no_column(name, f"the first {rows} rows of {shown}", list(seen))
    read: dict[str, pa.DataType] = {}
    pair = None
    if asked.pair_column is not None:
        pair = seen[asked.pair_column].pair_type
        if pair is None:
            usable = [name for name, values in seen.items() if values.pair_type is not None]
            raise not_text(asked.pair_column, shown, seen[asked.pair_column].words, usable, pair=True)
        read[asked.pair_column] = pa.list_(pa.string()) if pair == LISTS else pa.string()
    if asked.text_column is not None:
        if not seen[asked.text_column].may_be_text:
            strings = [name for name, values in seen.items() if values.is_text]
            raise not_text(asked.text_column, shown, seen[asked.text_column].words, strings)
        read[asked.text_column] = pa.string()

    def kind(name: str) -> pa.DataType:
        return read[name] if name in read else seen[name].arrow_type()

    keep, filtering = ([pa.field(name, kind(name)) for name in names] for names in (kept, asked.filtering))
    parts = [part_field(name, shown, kind(name)) for name in asked.parts]
    return Found(pa.string(), pair, keep, parts, filtering)


def csv_columns(inputs: Inputs, asked: Asked) -> Found:
    """Names by the headers, types by the sample; texts are strings, and so is what a template takes.

    A number goes into a text as it is written: ``007`` stays what it is.
    """
    headers: dict[str, None] = {}
    seen: dict[str, SeenFields] = {}
    rows = size = 0
    for file in inputs.files:
        place = inputs.root.show(file)
        with reading(place), open_stream(inputs.root, file) as stream:
            delimiter = delimiter_of(file.path)
            header, blocks = read_header(read_records(stream, delimiter), LINE_LIMIT, delimiter, place)
            if header is None:
                continue
            for name in (*asked.needed, *(() if isinstance(asked.keep, str) else asked.keep)):
                if name not in header:
                    raise no_column(name, place, header)
            headers |= dict.fromkeys(header)
            left = SAMPLE_ROWS if size < SAMPLE_BYTES else LATER_ROWS
            while left and (block := next(blocks, None)) is not None:
                count = min(left, len(block.sizes))
                records, sizes = block.bytes_of(0, count), block.sizes[:count].tolist()
                fields, _ = parse(records, sizes, LINE_LIMIT, delimiter, len(header))
                for at, name in enumerate(header):
                    if isinstance(asked.columns, str) or name in asked.columns:
                        seen.setdefault(name, SeenFields()).add([row[at] for row in fields])
                left, rows, size = left - count, rows + count, size + sum(sizes)
    if rows == 0:
        raise no_rows(inputs)
    kept = tuple(headers) if isinstance(asked.keep, str) else asked.keep
    texts = (asked.text_column, asked.pair_column)

    def field(name: str) -> pa.Field:
        unseen = name in texts or name not in seen
        return pa.field(name, pa.string() if unseen else seen[name].arrow_type())

    return Found(
        pa.string(),
        None if asked.pair_column is None else pa.large_string(),
        [field(name) for name in kept],
        [pa.field(name, pa.string()) for name in asked.parts],
        [field(name) for name in asked.filtering],
    )


def _sample(inputs: Inputs) -> tuple[dict[str, SeenValues], int]:
    """What the keys of the sampled rows hold, in the order of their first appearance, and how many rows."""
    seen: dict[str, SeenValues] = {}
    rows = size = 0
    for file in inputs.files:
        place = inputs.root.show(file)
        lines = _head(inputs, file, SAMPLE_ROWS if size < SAMPLE_BYTES else LATER_ROWS)
        for row, line in enumerate(lines):
            rows, size = rows + 1, size + len(line)
            value, _ = decode_line(line)
            for key, item in value.items() if type(value) is dict else ():
                if key not in seen and is_unicode(key):
                    seen[key] = SeenValues(key)
                if key in seen:
                    seen[key].add(item, f"{place}, row {row}")
    return seen, rows


def _head(inputs: Inputs, file: InputFile, rows: int) -> Iterator[bytes]:
    """The first rows of a file of lines; of a line over the limit nothing."""
    blank_rows = inputs.format == "text"
    with reading(inputs.root.show(file)), open_stream(inputs.root, file) as stream:
        blocks = read_lines(stream, blank_rows=blank_rows, limit=LINE_LIMIT)
        lines = (line for block in blocks for line in block.bytes_of(0, len(block.sizes)))
        yield from islice(lines, rows)
