"""A short measurement on a sample, and what it foretells: how long a run takes, what it writes, what feeds an actor.

The sample is spread over the input's files and row groups. It is computed on a worker of the model actors' kind, by
the run's own stages, and in one piece: the encoder's speed depends on how many texts of one length come together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from raybert.cluster import ENCODE_CPUS, READ_CPUS, WRITE_CPUS, Shares
from raybert.data.cells import from_row, sequences_from, to_row
from raybert.data.read import RawSplit, read_splits
from raybert.data.rows import bad_schema
from raybert.data.splits import SPLIT_ROWS, ReadTask
from raybert.data.stages import Job, ModelStage, encode_stage, make_files
from raybert.errors import InputError

_CHUNKS = 16  # places of the input that are looked into
_CHUNK_ROWS = 512
_PILOT_ROWS = 64
_MODEL_NOISE = 0.08  # relative: two measurements of one sample on a busy machine
_LEAST_BOOKING = 0.25  # of an actor; not one that a stage has, or Ray Data would fuse the two


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a sample showed. Seconds are those of one worker.

    Attributes:
        rows: of the sample, bad and filtered ones included.
        tokens: a row, of all heads, before truncation.
        forwarded: tokens a row that go through an encoder.
        spread: relative standard error of ``forwarded``, from place to place of the input.
        read_s: seconds a row.
        encode_s: likewise.
        model_s: likewise, with all the threads of an actor.
        write_s: likewise, without the disk.
        bytes: a row, as written.
        load_s: seconds until a model actor is ready.
    """

    rows: int
    tokens: float
    forwarded: float
    spread: float
    read_s: float
    encode_s: float
    model_s: float
    write_s: float
    bytes: float
    load_s: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run is expected to take, from the moment its workers can begin.

    Attributes:
        rows: of the input that are left.
        tokens: of all heads.
        bytes: of OUTPUT.
        seconds: expected.
        low: likely not less.
        high: likely not more.
        bound: what decides it: ``model``, ``read``, ``encode``, ``write`` or ``CPUs``.
        feeders: CPUs that read, encode and write as fast as one model actor computes.
    """

    rows: int
    tokens: int
    bytes: int
    seconds: float
    low: float
    high: float
    bound: str
    feeders: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def forecast(found: Calibration, rows: int, shares: Shares, cpus: float) -> Forecast:
    """Extrapolate; pure.

    A stage can't be faster than its workers, and all stages together not faster than the CPUs that they share: on CPUs
    the model actors' own arithmetic counts among them.

    Args:
        found: the sample's figures.
        rows: that are left to compute.
        shares: how the stages share the cluster.
        cpus: of the whole cluster.
    """
    others = found.read_s + found.encode_s + found.write_s
    limits = {
        "model": found.model_s / shares.most,
        "read": found.read_s / shares.readers,
        "encode": found.encode_s / shares.encoders,
        "write": found.write_s / shares.writers,
        "CPUs": _cpu_s(found, shares) / cpus,
    }
    bound = max(limits, key=lambda name: limits[name])
    # The first split has to be read and encoded before an actor computes, the last one to be written after.
    seconds = rows * limits[bound] + found.load_s + min(rows, SPLIT_ROWS) * others
    doubt = 2 * math.hypot(found.spread, _MODEL_NOISE)
    return Forecast(
        rows=rows,
        tokens=round(rows * found.tokens),
        bytes=round(rows * found.bytes),
        seconds=seconds,
        low=seconds / (1 + doubt),
        high=seconds * (1 + doubt),
        bound=bound,
        feeders=others / found.model_s,
    )


def _cpu_s(found: Calibration, shares: Shares) -> float:
    """Seconds of CPUs that a row takes in all stages together."""
    arithmetic = 0.0 if shares.gpus else found.model_s * shares.streams
    return found.read_s + found.encode_s + found.write_s + arithmetic


def spread_out(tasks: Sequence[ReadTask]) -> list[ReadTask]:
    """Some of the tasks, evenly from first to last."""
    if len(tasks) <= _CHUNKS:
        return list(tasks)
    return [tasks[at * (len(tasks) - 1) // (_CHUNKS - 1)] for at in range(_CHUNKS)]


def calibrate(tasks: Sequence[ReadTask], job: Job, seconds: float) -> Calibration | None:
    """Compute a sample in this process, a worker of the model actors' kind.

    Args:
        tasks: where to look, see `spread_out`.
        job: of the run; nothing is written.
        seconds: that the model may compute, roughly.

    Returns:
        None where no row of the sample can be computed.
    """
    begun = time.perf_counter()
    model = ModelStage(job.heads, job.fingerprints, job.engine, job.streams, job.pairs)
    load_s = time.perf_counter() - begun
    begun = time.perf_counter()
    chunks = [chunk for task in tasks if (chunk := _first_rows(task, job)) is not None]
    read_s = time.perf_counter() - begun
    table = pa.concat_tables([chunk.rows for chunk in chunks]) if chunks else None
    if table is None or not len(table):
        return None
    seen = sum(chunk.rows_in for chunk in chunks)
    # Also takes what the first calls take: the tokenizer is opened, kernels are compiled.
    _computed(_evenly(table, _PILOT_ROWS), job, model)
    pilot = _computed(_evenly(table, _PILOT_ROWS), job, model)
    affordable = int(seconds / max(pilot["model_s"], 1e-6) * _PILOT_ROWS)
    sample = _computed(_evenly(table, max(_PILOT_ROWS, affordable)), job, model)
    good = len(table) / seen  # bad rows cost next to nothing
    per_row = {name: good * sample[name] / sample["rows"] for name in sample if name != "rows"}
    return Calibration(
        rows=seen,
        spread=_spread([_lengths(chunk, job) for chunk in chunks if len(chunk.rows)]),
        read_s=read_s / seen,
        load_s=load_s,
        **per_row,
    )


def _first_rows(task: ReadTask, job: Job) -> RawSplit | None:
    """The first rows of a task; a file that can't be read is told by the run itself."""
    try:
        return next(islice(read_splits(task, replace(job.read, split_rows=_CHUNK_ROWS)), 1))
    except InputError:
        return None


def _evenly(table: pa.Table, rows: int) -> pa.Table:
    """So many rows of a table, or all, from first to last."""
    if rows >= len(table):
        return table
    return table.take(pa.array(np.linspace(0, len(table) - 1, rows).astype(np.int64)))


def _computed(rows: pa.Table, job: Job, model: ModelStage) -> dict[str, float]:
    """Rows through the stages, and the seconds of each."""
    file = {"number": 0, "path": "", "size": 0, "version": ""}
    note = {"file": file, "begin": 0, "end": len(rows), "last": True, "filtered": 0}
    bad = bad_schema(job.read.keep).empty_table()
    encoded = encode_stage(to_row(note, {"rows": rows, "bad": bad}), job)
    computed, tables = from_row(model(encoded))
    begun = time.perf_counter()
    files = make_files(computed, tables, job)
    return {
        "rows": len(rows),
        "tokens": sum(files.note["tokens"].values()),
        "forwarded": computed["forwarded"],
        "encode_s": computed["encode_s"],
        "model_s": computed["model_s"],
        "write_s": time.perf_counter() - begun,
        "bytes": len(files.part),
    }


def _lengths(chunk: RawSplit, job: Job) -> float:
    """Tokens a row of one place."""
    _, tables = from_row(encode_stage(to_row({}, {"rows": chunk.rows, "bad": chunk.bad}), job))
    trunks = [name for name in tables if name.startswith("trunk")]
    return sum(len(sequences_from(tables[name]).ids) for name in trunks) / len(chunk.rows)


def _spread(means: Sequence[float]) -> float:
    """Relative standard error of the mean of means; a single place tells nothing, so that a tenth is assumed."""
    if len(means) < 2:
        return 0.1
    return float(np.std(means, ddof=1) / np.mean(means) / math.sqrt(len(means)))


def sized(found: Calibration, shares: Shares, cpus: float) -> Shares:
    """As many readers, encoders and writers as the model actors, or the CPUs, can keep up with; pure.

    Ray Data would guess them from what piles up, and a fast stage then takes the CPUs of a slow one (ray#65540).
    """
    rate = min(shares.most / found.model_s, cpus / _cpu_s(found, shares))  # rows a second
    wanted = {name: max(1, math.ceil(rate * seconds)) for name, seconds in _feeding(found).items()}
    booked = {"read": READ_CPUS, "encode": ENCODE_CPUS, "write": WRITE_CPUS}
    more = sum((count - 1) * booked[name] for name, count in wanted.items())
    return replace(
        shares,
        readers=wanted["read"],
        encoders=wanted["encode"],
        writers=wanted["write"],
        # What is booked holds nobody to it: but beside actors that book all there is, no second encoder would start.
        cpus=max(_LEAST_BOOKING, shares.cpus - more / shares.most) if more else shares.cpus,
    )


def _feeding(found: Calibration) -> dict[str, float]:
    return {"read": found.read_s, "encode": found.encode_s, "write": found.write_s}
