"""`apply`: heads over any Ray dataset, as lazy columns; the job's own stages without a ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raybert.cluster import ENCODE_CPUS, WRITE_CPUS, alive_nodes, call_on_worker, limit_worker, share_out
from raybert.config import HeadSpec, heads_from, one_of
from raybert.data.arrowtypes import LISTS, pair_type, plain_type
from raybert.data.cells import from_row, to_row
from raybert.data.heads import VECTOR_TYPES, check_pairs, head_fields
from raybert.data.stages import ModelStage, encoded_tables, head_columns, load_check
from raybert.errors import InputError, SettingsError
from raybert.tasks import TASKS
from raybert.tasks.program import open_program

_BATCH_ROWS = 4096
_OTHERS_CPUS = 1.0  # what Ray Data books for a task of the dataset's other stages, unless told


def apply(
    dataset: Any,
    heads: Mapping[str, Sequence[Any] | HeadSpec],
    *,
    text_column: str = "text",
    pair_column: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    budget: int | None = None,
    vector_type: str = "float32",
    actors: int | tuple[int, int] | None = None,
    cpus_per_actor: float | None = None,
    gpus_per_actor: float | None = None,
) -> Any:
    """Add each head's columns to a Ray dataset; nothing is computed before the dataset is consumed.

    A row whose text is null, not a string, or can't be encoded keeps its place and has null in every head's columns.

    Args:
        dataset: any `ray.data.Dataset`.
        heads: ``{"v": ("demo", "embed")}``, as in `raybert.data.run`.
        text_column: the dataset's column of texts.
        pair_column: of the second texts, or lists of choices, for heads over pairs; null answers as for texts.
        device: auto, cpu or cuda.
        dtype: auto, float32, bfloat16 or float16; resolved once for all actors.
        budget: tokens of one forward.
        vector_type: float32 or float16, of embeddings.
        actors: model actors, or least and most; None fills the cluster.
        cpus_per_actor: CPUs booked for one.
        gpus_per_actor: GPUs booked for one.

    Returns:
        A lazy `ray.data.Dataset` with the old columns and the new ones.

    Raises:
        UsageError: a column is missing or taken, or a head can't be honoured.
    """
    import ray.data

    one_of("vector_type", vector_type, VECTOR_TYPES)
    specs = heads_from(heads)
    pairs = pair_column is not None
    _check_columns(dataset, specs, text_column, pair_column, vector_type)
    shares = share_out(
        alive_nodes(),
        device=device,
        actors=(actors, actors) if isinstance(actors, int) else actors,
        cpus_per_actor=cpus_per_actor,
        gpus_per_actor=gpus_per_actor,
        others=_OTHERS_CPUS,
    )
    engine = call_on_worker(load_check, specs, device, dtype, budget, cpus=shares.cpus, gpus=shares.gpus)
    program = open_program(specs, pairs=pairs)
    stage = {
        "specs": specs,
        "fingerprints": {name: task.fingerprint(engine["dtype"]) for name, task in program.tasks.items()},
        "engine": engine,
        "streams": shares.streams,
        "pairs": pairs,
    }
    dataset = dataset.map_batches(
        _encode,
        batch_size=_BATCH_ROWS,
        batch_format="pyarrow",
        fn_kwargs={"specs": specs, "text_column": text_column, "pair_column": pair_column},
        num_cpus=ENCODE_CPUS,
    )
    dataset = dataset.map_batches(
        ModelStage,
        batch_size=1,
        batch_format="pyarrow",
        fn_constructor_kwargs=stage,
        num_cpus=shares.cpus,
        num_gpus=shares.gpus or None,
        compute=ray.data.ActorPoolStrategy(min_size=shares.least, max_size=shares.most),
    )
    return dataset.map_batches(
        _decode,
        batch_size=1,
        batch_format="pyarrow",
        fn_kwargs={"specs": specs, "vector_type": vector_type, "text_column": text_column, "pair_column": pair_column},
        num_cpus=WRITE_CPUS,
    )


def _check_columns(
    dataset: Any, specs: Sequence[HeadSpec], text_column: str, pair_column: str | None, vector_type: str
) -> None:
    """Refuse what Ray Data would let pass: it drops a misspelt column silently, and overwrites one that is there."""
    schema = dataset.schema()
    if schema is None:
        raise InputError("dataset: it has no rows, so no columns either")
    one_of("text_column", text_column, schema.names)
    if pair_column is not None:
        one_of("pair_column", pair_column, schema.names)
    kinds = dict(zip(schema.names, schema.types, strict=True))
    check_pairs(specs, None if pair_column is None else _second_type(pair_column, kinds[pair_column], specs))
    program = open_program(specs, pairs=pair_column is not None)
    taken = dict.fromkeys(schema.names, "the dataset")
    for spec in specs:
        for field in head_fields(program.tasks[spec.name], spec.name, vector_type):
            if field.name in taken:
                raise SettingsError(
                    f"head {spec.name!r}: {taken[field.name]} has a column {field.name!r}; use another name"
                )
            taken[field.name] = f"head {spec.name!r}"


def _takes_choices(specs: Sequence[HeadSpec]) -> bool:
    return any(TASKS[spec.task].takes == "choices" for spec in specs)


def _second_type(name: str, kind: Any, specs: Sequence[HeadSpec]) -> pa.DataType:
    """The type of the second column; of pandas' objects, which may be anything, what the heads take."""
    if not isinstance(kind, pa.DataType):
        return LISTS if _takes_choices(specs) else pa.large_string()
    found = pair_type(plain_type(kind))
    if found is None:
        raise InputError(f"column {name!r} of the dataset holds {kind}, not texts or lists of texts; name another one")
    return found


def _encode(block: pa.Table, specs: Sequence[HeadSpec], text_column: str, pair_column: str | None) -> pa.Table:
    """Rows -> one row with their windows; ``good`` says which rows have any."""
    from raybert.text.tokenizer import problem

    limit_worker()
    texts, seconds = _texts(block, text_column, pair_column)
    good = [row for row, text in enumerate(texts) if problem(text) is None]
    if seconds is not None:
        lists = _takes_choices(specs)
        good = [row for row in good if _is_second(seconds[row], lists=lists)]
    tables = {"block": block, "good": pa.table({"row": pa.array(good, pa.int64())})}
    program = open_program(specs, pairs=pair_column is not None)
    return to_row({}, tables | encoded_tables(program, *_chosen(texts, seconds, good)))


def _texts(block: pa.Table, text_column: str, pair_column: str | None) -> tuple[list[Any], list[Any] | None]:
    return block[text_column].to_pylist(), None if pair_column is None else block[pair_column].to_pylist()


def _chosen(
    texts: Sequence[Any], seconds: Sequence[Any] | None, rows: Sequence[int]
) -> tuple[list[Any], list[Any] | None]:
    return [texts[row] for row in rows], None if seconds is None else [seconds[row] for row in rows]


def _is_second(value: Any, *, lists: bool) -> bool:
    """Whether a value can stand beside a text: a text itself, or a list of one or more."""
    from raybert.text.tokenizer import problem

    if lists:
        return isinstance(value, list) and bool(value) and all(problem(text) is None for text in value)
    return problem(value) is None


def _decode(
    row: pa.Table, specs: Sequence[HeadSpec], vector_type: str, text_column: str, pair_column: str | None
) -> pa.Table:
    """Arrays -> the rows again, with the heads' columns; null where a row has none."""
    _, tables = from_row(row)
    block, good = tables["block"], tables["good"]["row"].to_numpy()
    program = open_program(specs, pairs=pair_column is not None)
    texts, seconds = _chosen(*_texts(block, text_column, pair_column), good.tolist())
    columns, _ = head_columns(program, tables, vector_type, texts, seconds)
    place = np.full(len(block), -1, np.int64)
    place[good] = np.arange(len(good))
    take = pa.array(place, mask=place < 0)
    for spec in specs:
        for field in head_fields(program.tasks[spec.name], spec.name, vector_type):
            block = block.append_column(field, columns[field.name].take(take))
    return block
