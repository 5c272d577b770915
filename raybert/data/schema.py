"""The run's columns, decided once before the first split: which there are, and what type each has.

Parquet tells its types in the footers. JSON lines are sampled: the first ``SAMPLE_ROWS`` rows of each file,
and only ``LATER_ROWS`` once ``SAMPLE_BYTES`` have been read. With ``all``, the columns are those of the sample:
a key that comes up later is not kept. A value that does not fit a kept column quarantines its row.
"""

from __future__ import annotations

import base64
import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from raybert.data.arrowtypes import is_text, plain_type
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
    """

    format: str
    text_column: str
    text_type: pa.DataType
    keep: pa.Schema

    def to_json(self) -> dict[str, object]:
        """JSON values for the manifest: readable names and types, and the exact Arrow schema."""
        exact = pa.schema([pa.field(self.text_column, self.text_type), *self.keep])
        return {
            "format": self.format,
            "text_column": self.text_column,
            "text_type": str(self.text_type),
            "keep": [{"name": field.name, "type": str(field.type)} for field in self.keep],
            "arrow": base64.b64encode(exact.serialize().to_pybytes()).decode("ascii"),
        }

    @classmethod
    def from_json(cls, values: dict[str, object]) -> InputSchema:
        """What ``to_json`` gave; the readable names and types are not read back."""
        exact = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(str(values["arrow"]))))
        text, *keep = exact
        return cls(format=str(values["format"]), text_column=text.name, text_type=text.type, keep=pa.schema(keep))


def decide_schema(
    inputs: Inputs, text_column: str, keep: Keep = (), *, footers: Sequence[Footer] | None = None
) -> InputSchema:
    """Decide the run's columns.

    Args:
        inputs: the files.
        text_column: the column of texts.
        keep: names of columns to carry along, or ``all`` for every column, the text included.
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
            footers = read_footers(inputs, keep if isinstance(keep, str) else (text_column, *keep))
        text_type, fields = _parquet_columns(inputs, footers, text_column, keep)
    elif inputs.format == "jsonl":
        text_type, fields = _jsonl_columns(inputs, text_column, keep)
    else:
        text_type, fields = _text_columns(inputs, text_column, keep)
    _refuse_reserved(field.name for field in fields)
    return InputSchema(format=inputs.format, text_column=text_column, text_type=text_type, keep=pa.schema(fields))


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


def _not_text(name: str, place: str, kind: str, strings: Sequence[str]) -> InputError:
    others = f" (columns of strings: {', '.join(strings[:20])})" if strings else ""
    return InputError(
        f"column {name!r} of {place} holds {kind}, not text; name a column of strings with --text-column{others}"
    )


def _parquet_columns(
    inputs: Inputs, footers: Sequence[Footer], text_column: str, keep: Keep
) -> tuple[pa.DataType, list[pa.Field]]:
    """The text's type and the kept fields; a file without a row says nothing about types."""
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
    fields = []
    for name in names:
        kind = _column_type(name, filled, required=not isinstance(keep, str))
        fields.append(pa.field(name, pa.string() if pa.types.is_null(kind) else kind))
    return text_type, fields


def _column_type(name: str, schemas: Sequence[tuple[str, pa.Schema]], *, required: bool) -> pa.DataType:
    """The one type that holds a column's values in all files."""
    places: dict[pa.DataType, str] = {}
    for place, schema in schemas:
        found = schema.get_all_field_indices(name)
        if len(found) > 1:
            raise InputError(f"column {name!r} is {len(found)} times in {place}; rename all but one")
        if found:
            places.setdefault(plain_type(schema.field(found[0]).type), place)
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


def _text_columns(inputs: Inputs, text_column: str, keep: Keep) -> tuple[pa.DataType, list[pa.Field]]:
    names = [TEXT_COLUMN] if isinstance(keep, str) else list(keep)
    for name in (text_column, *names):
        if name != TEXT_COLUMN:
            raise _no_column(name, inputs.root.shown, [TEXT_COLUMN])
    for file in inputs.files:
        if next(_head(inputs, file, 1), None) is not None:
            return pa.string(), [pa.field(name, pa.string()) for name in names]
    raise _no_rows(inputs)


def _jsonl_columns(inputs: Inputs, text_column: str, keep: Keep) -> tuple[pa.DataType, list[pa.Field]]:
    """Types by the sample; of the text column only strings count, anything else in it is a row's fault."""
    shown = inputs.root.shown
    seen, rows = _sample(inputs)
    if rows == 0:
        raise _no_rows(inputs)
    if not seen:
        remedy = "raybert reads JSON lines, one object a line"
        raise InputError(f"{shown}: none of the first {rows} rows is a JSON object with a key; {remedy}")
    names = list(seen) if isinstance(keep, str) else list(keep)
    for name in (text_column, *names):
        if name not in seen:
            raise _no_column(name, f"the first {rows} rows of {shown}", list(seen))
    if not seen[text_column].may_be_text:
        strings = [name for name, values in seen.items() if values.is_text]
        raise _not_text(text_column, shown, seen[text_column].words, strings)
    types = {name: pa.string() if name == text_column else seen[name].arrow_type() for name in names}
    return pa.string(), [pa.field(name, kind) for name, kind in types.items()]


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
