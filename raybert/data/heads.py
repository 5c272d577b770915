"""The heads of a run beside its input: names, columns, and whether they get what they take."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from raybert.config import HeadSpec
from raybert.data.schema import InputSchema
from raybert.errors import SettingsError
from raybert.tasks import TASKS, Task
from raybert.tasks.program import Program

VECTOR_TYPES = ("float32", "float16")


def check_pairs(specs: Sequence[HeadSpec], pair_type: pa.DataType | None) -> None:
    """Refuse heads that the second column can't serve, and a second column that no head reads.

    Args:
        specs: the heads.
        pair_type: of the second column: strings or lists of strings; None where there is none.

    Raises:
        SettingsError: naming the head.
    """
    has_lists = pair_type is not None and pa.types.is_nested(pair_type)
    wanted = {"pair": "a second text", "either": "a second text", "choices": "a list of choices"}
    readers = [(spec, TASKS[spec.task].takes) for spec in specs if TASKS[spec.task].takes != "text"]
    for spec, takes in readers:
        if pair_type is None and takes != "either":
            raise SettingsError(
                f"head {spec.name!r}: {spec.task} takes a text and {wanted[takes]}; name its column with --pair-column"
            )
        if pair_type is not None and has_lists != (takes == "choices"):
            found = "lists of texts" if has_lists else "texts"
            raise SettingsError(
                f"head {spec.name!r}: {spec.task} takes {wanted[takes]} beside each text, the pair column holds {found}"
            )
    if pair_type is not None and not readers:
        raise SettingsError("pair-column: no head takes pairs; leave it out")


def head_fields(task: Task, name: str, vector_type: str) -> list[pa.Field]:
    """All fields that a head adds to a part."""
    counts = [pa.field(f"{name}_tokens", pa.int32()), pa.field(f"{name}_truncated", pa.bool_())]
    return [*task.columns(name, vector_type), *counts]


def in_order(specs: Sequence[HeadSpec], names: Sequence[str]) -> tuple[HeadSpec, ...]:
    """The heads in an earlier run's order, which its columns have; others, which it refuses, stay behind."""
    place = {name: number for number, name in enumerate(names)}
    return tuple(sorted(specs, key=lambda spec: place.get(spec.name, len(place))))


def output_schema(specs: Sequence[HeadSpec], program: Program, columns: InputSchema, vector_type: str) -> pa.Schema:
    """The schema of every part: place of the row, kept columns, then each head's.

    Raises:
        SettingsError: two columns have one name.
    """
    fields = [pa.field("_file", pa.int32()), pa.field("_row", pa.int64()), *columns.keep]
    for spec in specs:
        for field in head_fields(program.tasks[spec.name], spec.name, vector_type):
            if field.name in {present.name for present in fields}:
                raise SettingsError(
                    f"column {field.name!r} of head {spec.name!r}: another column has that name; "
                    f"write NEWNAME:{spec.task}={spec.model}"
                )
            fields.append(field)
    return pa.schema(fields)
