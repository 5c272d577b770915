"""The run's columns, decided once before the first split: which there are, and what type each has.

Parquet tells its types in the footers; JSON lines and CSV are sampled, see `lineschema`. A value that does not fit a
kept column quarantines its row.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raybert.data.arrowtypes import is_text, pair_type, plain_type
from raybert.data.asked import Asked, Found, no_column, no_rows, not_text, part_field, refuse_reserved
from raybert.data.files import Inputs
from raybert.data.lineschema import csv_columns, jsonl_columns, text_columns
from raybert.data.parquet import Footer, Keep, read_footers
from raybert.data.where import Where
from raybert.errors import InputError


def _no_columns() -> pa.Schema:
    return pa.schema([])


@dataclass(frozen=True, kw_only=True)
class InputSchema:
    """The columns that a run reads.

    Attributes:
        format: of the input files.
        text_column: the input column that holds the texts; None where a template makes them.
        text_type: its type: a string or binary type, or null where every text is null; string of a template.
        keep: kept columns in their order, in the types that every part has.
        pair_column: the input column of what belongs to the texts; None where there is none.
        pair_type: its type once it is read: large_string, or large_list<large_string>.
        text_parts: the columns of the template, in the types in which they go into the texts.
        where_columns: the columns of the filter, in the run's types.
    """

    format: str
    text_column: str | None
    text_type: pa.DataType
    keep: pa.Schema
    pair_column: str | None = None
    pair_type: pa.DataType | None = None
    text_parts: pa.Schema = field(default_factory=_no_columns)
    where_columns: pa.Schema = field(default_factory=_no_columns)

    def to_json(self) -> dict[str, object]:
        """JSON values for the manifest: readable names and types, and the exact Arrow schema."""
        text = [] if self.text_column is None else [pa.field(self.text_column, self.text_type)]
        pair = [] if self.pair_column is None else [pa.field(self.pair_column, self.pair_type)]
        exact = pa.schema([*text, *pair, *self.text_parts, *self.where_columns, *self.keep])
        return {
            "format": self.format,
            "text_column": self.text_column,
            "text_type": str(self.text_type),
            "text_parts": _words(self.text_parts),
            "pair_column": self.pair_column,
            "pair_type": None if self.pair_type is None else str(self.pair_type),
            "where_columns": _words(self.where_columns),
            "keep": _words(self.keep),
            "arrow": base64.b64encode(exact.serialize().to_pybytes()).decode("ascii"),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> InputSchema:
        """What ``to_json`` gave; names and types come from the exact schema."""
        fields = list(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(str(values["arrow"])))))
        text = None if values["text_column"] is None else fields.pop(0)
        pair = None if values["pair_column"] is None else fields.pop(0)
        parts, filtering = len(values["text_parts"]), len(values["where_columns"])
        return cls(
            format=str(values["format"]),
            text_column=None if text is None else text.name,
            text_type=pa.string() if text is None else text.type,
            keep=pa.schema(fields[parts + filtering :]),
            pair_column=None if pair is None else pair.name,
            pair_type=None if pair is None else pair.type,
            text_parts=pa.schema(fields[:parts]),
            where_columns=pa.schema(fields[parts : parts + filtering]),
        )


def _words(schema: pa.Schema) -> list[dict[str, str]]:
    return [{"name": field.name, "type": str(field.type)} for field in schema]


def decide_schema(
    inputs: Inputs,
    text_column: str | None,
    keep: Keep = (),
    *,
    pair_column: str | None = None,
    text: str | None = None,
    where: str | None = None,
    footers: Sequence[Footer] | None = None,
) -> InputSchema:
    """Decide the run's columns.

    Args:
        inputs: the files.
        text_column: the column of texts; None where ``text`` makes them.
        keep: names of columns to carry along, or ``all`` for every column, the text included.
        pair_column: the column of what belongs to the texts: of strings, or of lists of strings.
        text: the template of the texts.
        where: the filter.
        footers: what ``read_footers`` gave for these Parquet files, when it was called already.

    Raises:
        InputError: a column that is missing, twice there, of no usable type or of two that nothing unites; a
            reserved name; no row in any file.
        SettingsError: the template or the filter makes no sense, in itself or for these columns.
    """
    if isinstance(keep, str) and keep != "all":
        raise TypeError(f"keep is 'all' or a tuple of names, not the string {keep!r}")
    if not isinstance(keep, str):
        repeated = [name for at, name in enumerate(keep) if name in keep[:at]]
        if repeated:
            raise InputError(f"column {repeated[0]!r} is named twice among the columns to keep")
        refuse_reserved(keep)
    asked = Asked(text_column=text_column, text=text, pair_column=pair_column, keep=keep, where=where)
    if inputs.format == "parquet":
        found = _parquet_columns(inputs, read_footers(inputs, asked.columns) if footers is None else footers, asked)
    else:
        columns_of = {"jsonl": jsonl_columns, "csv": csv_columns, "text": text_columns}
        found = columns_of[inputs.format](inputs, asked)
    refuse_reserved(field.name for field in found.keep)
    if where is not None:
        Where(where, pa.schema(found.filtering))
    return InputSchema(
        format=inputs.format,
        text_column=text_column,
        text_type=found.text,
        keep=pa.schema(found.keep),
        pair_column=pair_column,
        pair_type=found.pair,
        text_parts=pa.schema(found.parts),
        where_columns=pa.schema(found.filtering),
    )


def check_later_files(columns: InputSchema, inputs: Inputs, footers: Sequence[Footer], asked: Asked) -> None:
    """Refuse Parquet files that came after the columns were decided and that these do not describe.

    Raises:
        InputError: texts are missing or none; the pair column is missing, or of another kind than the run's; a column
            of the template or the filter is missing or of no usable type.
        SettingsError: the filter makes no sense for these columns.
    """
    name, kind = columns.pair_column, columns.pair_type
    now = decide_schema(
        inputs, asked.text_column, pair_column=name, text=asked.text, where=asked.where, footers=footers
    ).pair_type
    if now != kind:
        raise InputError(
            f"column {name!r} of {inputs.root.shown} is read as {now}, but this output was made with {kind}; put back "
            "the files as they were, or start anew with --overwrite"
        )


def _parquet_columns(inputs: Inputs, footers: Sequence[Footer], asked: Asked) -> Found:
    """What the footers tell; a file without a row says nothing about types."""
    filled = [
        (inputs.root.show(file), footer.schema)
        for file, footer in zip(inputs.files, footers, strict=True)
        if any(rows for rows, _ in footer.groups)
    ]
    if not filled:
        raise no_rows(inputs)
    place, first = filled[0]
    if isinstance(asked.keep, str):
        names = list(dict.fromkeys(name for _, schema in filled for name in schema.names))
    else:
        names = list(asked.keep)
    text_type = pa.string()
    if asked.text_column is not None:
        text_type = _column_type(asked.text_column, filled, required=True)
        if not (is_text(text_type) or pa.types.is_null(text_type)):
            strings = [field.name for field in first if is_text(plain_type(field.type))]
            raise not_text(asked.text_column, place, str(text_type), strings)
    pair = None if asked.pair_column is None else _parquet_pair(asked.pair_column, filled)
    parts = [part_field(name, place, _column_type(name, filled, required=True)) for name in asked.parts]
    filtering = [_parquet_field(name, filled, required=True) for name in asked.filtering]
    keep = [_parquet_field(name, filled, required=not isinstance(asked.keep, str)) for name in names]
    return Found(text_type, pair, keep, parts, filtering)


def _parquet_field(name: str, filled: Sequence[tuple[str, pa.Schema]], *, required: bool) -> pa.Field:
    kind = _column_type(name, filled, required=required)
    return pa.field(name, pa.string() if pa.types.is_null(kind) else kind)


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
        raise not_text(name, place, str(united), usable, pair=True)
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
            raise no_column(name, place, schema.names)
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
