"""The run's columns, decided once before the first split: which there are, and what type each has.

Parquet tells its types in the footers. JSON lines are sampled: the first ``SAMPLE_ROWS`` rows of each file,
and only ``LATER_ROWS`` once ``SAMPLE_BYTES`` have been read. With ``all``, the columns are those of the sample:
a key that comes up later is not kept. A value that does not fit a kept column quarantines its row.
"""

from __future__ import annotations

import base64
import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import pyarrow as pa

from raybert.data.arrowtypes import LISTS, is_text, pair_type, plain_type
from raybert.data.files import Inputs, open_stream, reading
from raybert.data.jsonl import decode_line
from raybert.data.jsonvalues import SeenValues, is_unicode
from raybert.data.lines import LINE_LIMIT, read_lines
from raybert.data.parquet import Footer, Keep, read_footers
from raybert.data.rows import RESERVED
from raybert.data.splits import InputFile
from raybert.errors import InputError

SAMPLE_ROWS = 10_000
"""Rows of each JSON lines file that decide the types."""

SAMPLE_BYTES = 256 << 20
"""After this much of JSON lines has been read, further files give ``LATER_ROWS`` each."""

LATER_ROWS = 100

TEXT_COLUMN = "text"
"""The one column of plain text files."""


@dataclass(frozen=True, kw_only=True)
class InputSchema:
    """The columns that a run reads.

    Attributes:
        format: of the input files.
        text_column: the input column that holds the texts.
        text_type: its type: a string or binary type, or null where every text is null.
        keep: kept columns in their order, in the types that every part has.
        pair_column: the input column of what belongs to the texts; None where there is none.
        pair_type: its type once it is read: large_string, or large_list<large_string>.
    """

    format: str
    text_column: str
    text_type: pa.DataType
    keep: pa.Schema
    pair_column: str | None = None
    pair_type: pa.DataType | None = None

    def to_json(self) -> dict[str, object]:
        """JSON values for the manifest: readable names and types, and the exact Arrow schema."""
        pair = [] if self.pair_column is None else [pa.field(self.pair_column, self.pair_type)]
        exact = pa.schema([pa.field(self.text_column, self.text_type), *pair, *self.keep])
        return {
            "format": self.format,
            "text_column": self.text_column,
            "text_type": str(self.text_type),
            "pair_column": self.pair_column,
            "pair_type": None if self.pair_type is None else str(self.pair_type),
            "keep": [{"name": field.name, "type": str(field.type)} for field in self.keep],
            "arrow": base64.b64encode(exact.serialize().to_pybytes()).decode("ascii"),
        }

    @classmethod
    def from_json(cls, values: dict[str, object]) -> InputSchema:
        """What ``to_json`` gave; names and types come from the exact schema."""
        exact = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(str(values["arrow"]))))
        text, *keep = exact
        pair = None if values["pair_column"] is None else keep.pop(0)
        return cls(
            format=str(values["format"]),
            text_column=text.name,
            text_type=text.type,
            keep=pa.schema(keep),
            pair_column=None if pair is None else pair.name,
            pair_type=None if pair is None else pair.type,
        )


def decide_schema(
    inputs: Inputs,
    text_column: str,
    keep: Keep = (),
    *,
    pair_column: str | None = None,
    footers: Sequence[Footer] | None = None,
) -> InputSchema:
    """Decide the run's columns.

    Args:
        inputs: the files.
        text_column: the column of texts.
        keep: names of columns to carry along, or ``all`` for every column, the text included.
        pair_column: the column of what belongs to the texts: of strings, or of lists of strings.
        footers: what ``read_footers`` gave for these Parquet files, when it was called already.

    Raises:
        InputError: a column that is missing, twice there, of no usable type or of two that nothing unites; a
            reserved name; no row in any file.
    """
    if isinstance(keep, str) and keep != "all":
        raise TypeError(f"keep is 'all' or a tuple of names, not the string {keep!r}")
    if not isinstance(keep, str):
        repeated = [name for at, name in enumerate(keep) if name in keep[:at]]
        if repeated:
            raise InputError(f"column {repeated[0]!r} is named twice among the columns to keep")
        _refuse_reserved(keep)
    if inputs.format == "parquet":
        if footers is None:
            footers = read_footers(inputs, columns_to_read(text_column, pair_column, keep))
        found = _parquet_columns(inputs, footers, text_column, pair_column, keep)
    elif inputs.format == "jsonl":
        found = _jsonl_columns(inputs, text_column, pair_column, keep)
    else:
        found = _text_columns(inputs, text_column, pair_column, keep)
    _refuse_reserved(field.name for field in found.fields)
    return InputSchema(
        format=inputs.format,
        text_column=text_column,
        text_type=found.text,
        keep=pa.schema(found.fields),
        pair_column=pair_column,
        pair_type=found.pair,
    )


def check_later_files(columns: InputSchema, inputs: Inputs, footers: Sequence[Footer]) -> None:
    """Refuse Parquet files that came after the columns were decided and that these do not describe.

    Raises:
        InputError: texts are missing or none; the pair column is missing, or of another kind than the run's.
    """
    name, kind = columns.pair_column, columns.pair_type
    now = decide_schema(inputs, columns.text_column, pair_column=name, footers=footers).pair_type
    if now != kind:
        raise InputError(
            f"column {name!r} of {inputs.root.shown} is read as {now}, but this output was made with {kind}; put back "
            "the files as they were, or start anew with --overwrite"
        )


def columns_to_read(text_column: str, pair_column: str | None, keep: Keep) -> Keep:
    """The columns whose bytes are to be summed over the footers."""
    if isinstance(keep, str):
        return keep
    return (text_column, *(() if pair_column is None else (pair_column,)), *keep)


class _Found(NamedTuple):
    """Types of the text and of the pair column, and the kept fields."""

    text: pa.DataType
    pair: pa.DataType | None
    fields: list[pa.Field]


def _refuse_reserved(names: Iterable[str]) -> None:
    for name in names:
        if name in RESERVED:
            raise InputError(
                f"column {name!r} can't be kept: raybert has a column of that name; rename it, or name the "
                "columns to keep without it"
            )


def _no_rows(inputs: Inputs) -> InputError:
    return InputError(f"{inputs.root.shown}: no rows in any of {len(inputs.files)} {inputs.format} files")


def _no_column(name: str, place: str, names: Sequence[str]) -> InputError:
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InputError(f"column {name!r} is not in {place}: it has {listed or 'no columns'}{hint}")


def _not_text(name: str, place: str, kind: str, usable: Sequence[str], *, pair: bool = False) -> InputError:
    what = "strings or lists of strings" if pair else "strings"
    others = f" (columns of {what}: {', '.join(usable[:20])})" if usable else ""
    return InputError(
        f"column {name!r} of {place} holds {kind}, not text{' or lists of texts' if pair else ''}; name a column of "
        f"{what} with --{'pair' if pair else 'text'}-column{others}"
    )


def _parquet_columns(
    inputs: Inputs, footers: Sequence[Footer], text_column: str, pair_column: str | None, keep: Keep
) -> _Found:
    """What the footers tell; a file without a row says nothing about types."""
    filled = [
        (inputs.root.show(file), footer.schema)
        for file, footer in zip(inputs.files, footers, strict=True)
        if any(rows for rows, _ in footer.groups)
    ]
    if not filled:
        raise _no_rows(inputs)
    if isinstance(keep, str):
        names = list(dict.fromkeys(name for _, schema in filled for name in schema.names))
    else:
        names = list(keep)
    text_type = _column_type(text_column, filled, required=True)
    place, first = filled[0]
    if not (is_text(text_type) or pa.types.is_null(text_type)):
        strings = [field.name for field in first if is_text(plain_type(field.type))]
        raise _not_text(text_column, place, str(text_type), strings)
    pair = None if pair_column is None else _parquet_pair(pair_column, filled)
    fields = []
    for name in names:
        kind = _column_type(name, filled, required=not isinstance(keep, str))
        fields.append(pa.field(name, pa.string() if pa.types.is_null(kind) else kind))
    return _Found(text_type, pair, fields)


def _parquet_pair(name: str, filled: Sequence[tuple[str, pa.Schema]]) -> pa.DataType:
    """The run's type of the pair column; strings of any type go together, and lists of any length."""

    def as_read(kind: pa.DataType) -> pa.DataType:
        plain = plain_type(kind)
        read = pair_type(plain)
        return plain if read is None else read

    united = _column_type(name, filled, required=True, simplified=as_read)
    if pa.types.is_null(united):
        return pa.large_string()
    if pair_type(united) is None:
        place, first = filled[0]
        usable = [field.name for field in first if pair_type(plain_type(field.type)) is not None]
        raise _not_text(name, place, str(united), usable, pair=True)
    return united


def _column_type(
    name: str,
    schemas: Sequence[tuple[str, pa.Schema]],
    *,
    required: bool,
    simplified: Callable[[pa.DataType], pa.DataType] = plain_type,
) -> pa.DataType:
    """The one type that holds a column's values in all files, each file's type ``simplified``."""
    places: dict[pa.DataType, str] = {}
    for place, schema in schemas:
        found = schema.get_all_field_indices(name)
        if len(found) > 1:
            raise InputError(f"column {name!r} is {len(found)} times in {place}; rename all but one")
        if found:
            places.setdefault(simplified(schema.field(found[0]).type), place)
        elif required:
            raise _no_column(name, place, schema.names)
    (united, here), *others = places.items()
    for kind, place in others:
        try:
            pair = [pa.schema([(name, united)]), pa.schema([(name, kind)])]
            united = pa.unify_schemas(pair, promote_options="permissive").field(name).type
            for one in (*places, united):
                pa.array([], one).cast(united)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise InputError(
                f"column {name!r} is {next(iter(places))} in {here} and {kind} in {place}; "
                "no type holds both: make them one, or leave the column out"
            ) from error
    return united


def _text_columns(inputs: Inputs, text_column: str, pair_column: str | None, keep: Keep) -> _Found:
    if pair_column is not None:
        raise InputError(
            f"{inputs.root.shown}: plain text has the one column {TEXT_COLUMN!r} and no pair column {pair_column!r}; "
            "write Parquet or JSON lines"
        )
    names = [TEXT_COLUMN] if isinstance(keep, str) else list(keep)
    for name in (text_column, *names):
        if name != TEXT_COLUMN:
            raise _no_column(name, inputs.root.shown, [TEXT_COLUMN])
    for file in inputs.files:
        if next(_head(inputs, file, 1), None) is not None:
            return _Found(pa.string(), None, [pa.field(name, pa.string()) for name in names])
    raise _no_rows(inputs)


def _jsonl_columns(inputs: Inputs, text_column: str, pair_column: str | None, keep: Keep) -> _Found:
    """Types by the sample; of text and pair column only what can be read counts, all else is a row's fault."""
    shown = inputs.root.shown
    seen, rows = _sample(inputs)
    if rows == 0:
        raise _no_rows(inputs)
    if not seen:
        remedy = "raybert reads JSON lines, one object a line"
        raise InputError(f"{shown}: none of the first {rows} rows is a JSON object with a key; {remedy}")
    names = list(seen) if isinstance(keep, str) else list(keep)
    for name in columns_to_read(text_column, pair_column, tuple(names)):
        if name not in seen:
            raise _no_column(name, f"the first {rows} rows of {shown}", list(seen))
    if not seen[text_column].may_be_text:
        strings = [name for name, values in seen.items() if values.is_text]
        raise _not_text(text_column, shown, seen[text_column].words, strings)
    pair = None if pair_column is None else seen[pair_column].pair_type
    if pair_column is not None and pair is None:
        usable = [name for name, values in seen.items() if values.pair_type is not None]
        raise _not_text(pair_column, shown, seen[pair_column].words, usable, pair=True)
    read = {pair_column: pa.list_(pa.string()) if pair == LISTS else pa.string(), text_column: pa.string()}
    fields = [pa.field(name, read[name] if name in read else seen[name].arrow_type()) for name in names]
    return _Found(pa.string(), pair, fields)


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
