"""The Ray Data pipeline: read tasks -> splits -> windows -> arrays -> committed parts.

Each stage asks Ray for another amount of CPU, so that Ray Data keeps them apart (it fuses neighbours that ask for the
same, and tokenization would move into the model actors). Blocks hold one row: a split flows as soon as it is read.

A worker that dies is replaced by Ray, and its split tried again, for ever if need be. So the tries are counted outside
of the workers, in `Tries`: after the second death the split is set aside and travels on as a suspect, as does one for
which a stage raises what raybert raises nowhere. The driver looks for the rows to blame when all others are done.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from raybert.cluster import ENCODE_CPUS, READ_CPUS, WRITE_CPUS, Shares, first_line, limit_worker
from raybert.data.cells import from_row, to_row
from raybert.data.metrics import Busy, Instruments, Tags
from raybert.data.splits import ReadTask
from raybert.data.stages import Job, ModelStage, Note, encode_stage, read_stage, write_stage
from raybert.errors import RaybertError, RunFailed

MOST_DEATHS = 2

SUSPECT = "Suspect"
"""``kind`` of the note of a split that was set aside."""


class Tries:
    """An actor that outlives workers: which stage began which split, and never ended it.

    Args:
        tags: where metrics are wanted.
    """

    def __init__(self, tags: Tags | None = None) -> None:
        self._instruments = None if tags is None else Instruments(tags)
        self._open: dict[str, int] = {}
        self._reached: dict[str, int] = {}
        self._aside: dict[str, Note] = {}

    def begin(self, key: str) -> bool:
        """Count a try; False when as many as `MOST_DEATHS` began before and none ended."""
        self._open[key] = self._open.get(key, 0) + 1
        return self._open[key] <= MOST_DEATHS

    def reach(self, key: str, row: int) -> None:
        """A reader handed on all rows before this one: one more split, unless another worker had come as far."""
        if self._instruments is not None and row > self._reached.get(key, -1):
            self._instruments.count("splits_read", 1)
        self._reached[key] = max(row, self._reached.get(key, row))

    def reached(self, key: str, row: int) -> int:
        """The row that the reader of this key reached, having begun at ``row``."""
        return self._reached.get(key, row)

    def end(self, key: str) -> int:
        """The try ended, well or with an error: its worker lives. How many died before it."""
        return self._open.pop(key, 1) - 1

    def put_aside(self, key: str, note: Note) -> None:
        """Remember a split that is tried no more."""
        self._aside[key] = note

    def aside(self) -> list[Note]:
        """The notes of all of these."""
        return list(self._aside.values())


def start_tries(tags: Tags | None = None) -> Any:
    """`Tries` as an actor of the connected Ray, on the driver's own node: with another one the whole run would die."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Tries).remote(tags)


def _key(stage: str, note: Note) -> str:
    return f"{stage}/{note['file']['number']}/{note['begin']}"


def _died(stage: str, note: Note, tries: Any) -> pa.Table:
    import ray

    key = _key(stage, note)
    if stage == "read":  # from the start of its task on; where it was when it died, only the tries know
        note = {**note, "begin": ray.get(tries.reached.remote(key, note["begin"]))}
    why = f"{MOST_DEATHS} workers died while they tried to {stage} it"
    note = {**note, "error": why, "kind": SUSPECT, "deaths": MOST_DEATHS}
    # A reader may have handed on splits before it died: what it hands on now is not looked at then.
    ray.get(tries.put_aside.remote(key, note))
    return to_row(note, {})


def _guarded(stage: str, row: pa.Table, tries: Any, work: Callable[[pa.Table], pa.Table]) -> pa.Table:
    """Do ``work`` unless workers keep dying of this row; what it raises makes the split a suspect."""
    import ray

    note, _ = from_row(row)
    if "error" in note:
        return row
    key = _key(stage, note)
    if not ray.get(tries.begin.remote(key)):
        return _died(stage, note, tries)
    try:
        done = work(row)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001  a panic of the tokenizers is no Exception
        done = to_row({**note, "error": f"{stage}: {type(error).__name__}: {first_line(error)}", "kind": SUSPECT}, {})
    finally:
        deaths = ray.get(tries.end.remote(key))
    return _with_deaths(done, deaths) if deaths else done


def _with_deaths(row: pa.Table, deaths: int) -> pa.Table:
    note, tables = from_row(row)
    return to_row({**note, "deaths": note.get("deaths", 0) + deaths}, tables)


def _read(block: pa.Table, job: Job, tries: Any) -> Iterator[pa.Table]:
    import ray

    task: ReadTask = pickle.loads(block["task"][0].as_py())  # noqa: S301  made by this job's own driver
    note: Note = {"file": {"number": task.file.number, "path": task.file.path}, "begin": task.begin}
    key = _key("read", note)
    if not ray.get(tries.begin.remote(key)):
        yield _died("read", note, tries)
        return
    try:
        for row in read_stage(task, job):
            handed_on, _ = from_row(row)
            yield row
            del row
            if "end" in handed_on:
                ray.get(tries.reach.remote(key, handed_on["end"]))
    finally:
        ray.get(tries.end.remote(key))


def _encode(block: pa.Table, job: Job, tries: Any) -> pa.Table:
    limit_worker()
    return _guarded("encode", block, tries, lambda row: encode_stage(row, job))


class _Model:
    """`ModelStage` as Ray Data calls it."""

    def __init__(self, job: Job, tries: Any, tags: Tags | None) -> None:
        self._stage = ModelStage(job.heads, job.fingerprints, job.engine, job.streams, job.pairs)
        self._tries = tries
        self._busy = None if tags is None else Busy(tags)

    def __call__(self, block: pa.Table) -> pa.Table:
        return _guarded("compute", block, self._tries, self._compute)

    def _compute(self, row: pa.Table) -> pa.Table:
        done = self._stage(row)
        if self._busy is not None:
            note, _ = from_row(done)
            self._busy.worked(note["model_s"])
        return done


def _write(block: pa.Table, job: Job, tries: Any) -> pa.Table:
    return _guarded("write", block, tries, lambda row: write_stage(row, job))


@contextmanager
def data_context() -> Iterator[None]:
    """Ray Data's settings for a job, put back at the end; they are copied into a dataset when it is made."""
    import ray.data

    context = ray.data.DataContext.get_current()
    ours = {
        # One row a block: a split is never held back until others fill a block, nor tied to their fate.
        "target_max_block_size": 1,
        # A stage waits when as much lies before the next one as that works on: memory is a few splits a worker.
        "downstream_capacity_backpressure_ratio": 1.0,
        # A reader holds one finished split, not two, until the next stage takes it.
        "_max_num_blocks_in_streaming_gen_buffer": 1,
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        # A split may take its time; a job that is stuck shows it in its progress.
        "execution_no_progress_timeout_s": -1,
    }
    before = {name: getattr(context, name) for name in ours if hasattr(context, name)}
    for name in before:
        setattr(context, name, ours[name])
    loggers = [logging.getLogger(name) for name in ("ray.data", "ray.data.dataset")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # what it logs as errors is raised as well, and told in one line
    try:
        with warnings.catch_warnings():
            # How many splits there are is known when they were read; the advice is about an option of Ray's own.
            warnings.filterwarnings("ignore", "The minimum number of concurrent actors", UserWarning)
            yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def build(tasks: Sequence[ReadTask], job: Job, shares: Shares, tries: Any, tags: Tags | None = None) -> Any:
    """The lazy dataset: one row a read task in, one note a split out; ``tags`` where metrics are wanted."""
    import ray.data

    pool = ray.data.TaskPoolStrategy
    arguments = {"fn_kwargs": {"job": job, "tries": tries}, "batch_size": 1, "batch_format": "pyarrow"}
    rows = [{"task": pickle.dumps(task)} for task in tasks]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    readers = min(shares.readers, len(rows))  # Ray Data warns of places that nobody takes
    dataset = dataset.map_batches(_read, num_cpus=READ_CPUS, compute=pool(size=readers), **arguments)
    dataset = dataset.map_batches(_encode, num_cpus=ENCODE_CPUS, compute=pool(size=shares.encoders), **arguments)
    dataset = dataset.map_batches(
        _Model,
        fn_constructor_kwargs={"job": job, "tries": tries, "tags": tags},
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=shares.cpus,
        num_gpus=shares.gpus or None,
        # Two splits at once in an actor, so that its streams never wait for the next one; a third lies ready.
        compute=ray.data.ActorPoolStrategy(
            min_size=shares.least,
            max_size=shares.most,
            max_concurrent_calls_per_actor=2,
            enable_true_multi_threading=True,
            max_tasks_in_flight_per_actor=3,
        ),
    )
    return dataset.map_batches(_write, num_cpus=WRITE_CPUS, compute=pool(size=shares.writers), **arguments)


def notes(dataset: Any, tries: Any) -> Iterator[Note]:
    """Run the dataset of `build`; the note of each split as soon as it is committed, failed or set aside.

    Raises:
        RaybertError: an error of ours that no stage could turn into a note (a model actor that can't start).
    """
    import ray

    from raybert.cluster import cause_of

    told = set()
    try:
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for number in range(block.num_rows):
                note, _ = from_row(block.slice(number, 1).combine_chunks())
                told.add((note.get("error"), note["file"]["number"], note["begin"]))
                yield note
        for note in ray.get(tries.aside.remote()):
            if (note["error"], note["file"]["number"], note["begin"]) not in told:
                yield note
    except RaybertError:
        raise
    except ray.exceptions.RayError as error:
        ours = cause_of(error)
        raise (ours or RunFailed(f"Ray: {first_line(error)}; what was committed stays, run again")) from error
