"""Parity: do a run's heads answer today what stands in its parts?

A sample of the run's rows is read from the input again and answered anew, and every column is compared. Who answers
is one callable, `Answer`: this process, or a client of an endpoint.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from raybert.config import HeadSpec, nearest
from raybert.data.compare import (
    EXACT,
    TOLERANCES,
    Comparison,
    Form,
    Tolerance,
    answer_form,
    first_difference,
    innermost,
    shown,
    stored_forms,
    told,
)
from raybert.data.endpoint import Endpoint
from raybert.data.files import input_root
from raybert.data.manifest import NAME as MANIFEST
from raybert.data.manifest import Head, Manifest, load
from raybert.data.plan import read_spec
from raybert.data.rows import PAIR, TEXT
from raybert.data.sample import Place, Sample, committed, take_sample
from raybert.data.schema import InputSchema
from raybert.data.stages import row_texts
from raybert.data.store import Store
from raybert.errors import CheckpointError, DeviceError, SettingsError, UsageError
from raybert.tasks import TASKS, Task, make_task
from raybert.tasks.program import group_heads
from raybert.version import VERSION

Answer = Callable[[Sequence[Any]], Mapping[str, Any]]
"""Items (texts; or pairs, where the run has a pair column) -> each head's answers to them, as its predictor gives."""

MOST_SHOWN = 3
"""Rows that differ which are named, of each head."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One row that differs.

    Attributes:
        place: the row.
        where: the first of its columns that does, and the place in it: ``people[2]['score']``.
        stored: the part's value there.
        computed: the value as it comes out now.
    """

    place: Place
    where: str
    stored: str
    computed: str

    def __str__(self) -> str:
        return f"{self.place}: {self.where}: stored {self.stored}, now {self.computed}"


@dataclass(kw_only=True)
class Compared:
    """What was found of one head, or of the input.

    Attributes:
        name: the head's, or "input" for kept columns and for rows that reading gives no more.
        rows: rows compared.
        differing: how many differ.
        worst_cosine: of all vectors; None where there are none.
        largest_difference: of all scores; None where there are none.
        tolerance: what was allowed.
        first: the first rows that differ.
    """

    name: str
    rows: int
    differing: int = 0
    worst_cosine: float | None = None
    largest_difference: float | None = None
    tolerance: Tolerance = EXACT
    first: list[Difference] = field(default_factory=list)

    def add(self, difference: Difference) -> None:
        """Count a row that differs."""
        self.differing += 1
        if len(self.first) < MOST_SHOWN:
            self.first.append(difference)


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """What `parity` found.

    Attributes:
        rows: rows compared.
        parts: parts of the run that hold rows.
        heads: each head's comparison, in column order.
        input: that of the kept columns.
        left_out: a line for each input file that changed or is gone.
        notes: lines on how the comparison was made, where it was not the run's own way.
    """

    rows: int
    parts: int
    heads: tuple[Compared, ...]
    input: Compared
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """No row differs."""
        return not any(each.differing for each in (*self.heads, self.input))


def parity(
    output: str | os.PathLike[str] | Store,
    *,
    rows: int = 200,
    seed: int = 0,
    input: str | None = None,  # noqa: A002  the outer contract's name
    models: Mapping[str, str] | None = None,
    answer: Answer | None = None,
    url: str | None = None,
    api_key: str | None = None,
) -> ParityReport:
    """Answer a sample of a run's rows anew and compare every column.

    Args:
        output: the run's folder, finished or not.
        rows: how many rows.
        seed: another one draws other rows.
        input: where the run's input lies now: the folder above all its files, or the one file; None takes the
            manifest's.
        models: head name -> where its checkpoint lies now; heads that are not named take the manifest's.
        answer: who answers; None loads the heads into this process.
        url: of a service that answers instead.
        api_key: where the service asks for one.

    Raises:
        UsageError: no run, no row to compare, or an option that can't be meant; the service has other heads.
        RunFailed: the service fails.
        CheckpointError: a checkpoint is gone, or another one than the run's.
        InputError: the input is gone, or no file of the sample is as it was.
        OutputError: a part can't be read.
        DeviceError: the run's dtype is not to be had here.
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise SettingsError(f"rows {rows!r}: takes a whole number from 1")
    store = output if isinstance(output, Store) else Store(output)
    manifest = load(store)
    if manifest is None:
        raise UsageError(f"{store.place(MANIFEST)}: not found; name the --output folder of a run")
    tasks = open_heads(manifest, models or {})
    settings = manifest.settings
    receipts = committed(store, manifest)
    if not any(receipt.ok for receipt in receipts.values()):
        raise UsageError(f"{store.place('')}: no part holds a row yet; run `raybert run` again to continue")
    root = input_root(input or settings["input"])
    spec = read_spec(root, InputSchema.from_json(settings["columns"]), settings)
    sample = take_sample(store, manifest, receipts, spec, rows=rows, seed=seed)
    notes: tuple[str, ...] = ()
    if url is not None:
        answer = Endpoint(url, tasks, manifest.engine["dtype"], api_key=api_key)
    if answer is not None:
        heads = compare_heads(manifest, tasks, sample, answer)
    else:
        with answers_here(tasks, manifest.engine) as (here, notes):
            heads = compare_heads(manifest, tasks, sample, here)
    return ParityReport(
        rows=len(sample.places),
        parts=sum(receipt.ok > 0 for receipt in receipts.values()),
        heads=heads,
        input=_compare_input(sample),
        left_out=sample.left_out,
        notes=notes,
    )


def open_heads(manifest: Manifest, models: Mapping[str, str]) -> dict[str, Task]:
    """The run's heads as their checkpoints are now, in column order; no weight is loaded.

    Args:
        manifest: of the run.
        models: head name -> where its checkpoint lies now.

    Raises:
        SettingsError: a name of no head.
        CheckpointError: a checkpoint is gone, or another one than the run's.
    """
    names = [head["name"] for head in manifest.heads]
    for name in models:
        if name not in names:
            raise SettingsError(f"model {name}=…: no head is called {name!r}{nearest(name, names)}")
    return {head["name"]: _open(head, models.get(head["name"], head["model"]), manifest) for head in manifest.heads}


def _open(head: Head, model: str, manifest: Manifest) -> Task:
    name = head["name"]
    # The manifest's options are resolved: they hold what the checkpoint says too, and None for what is not in use.
    known = TASKS[head["task"]].OPTIONS
    options = {key: value for key, value in head["options"].items() if key in known and value is not None}
    remedy = f"name the run's own checkpoint with --model {name}=PATH"
    try:
        task = make_task(HeadSpec(name=name, task=head["task"], model=model, options=options))
        found = task.fingerprint(manifest.engine["dtype"])
    except UsageError as error:  # of another checkpoint the options may make no sense
        raise CheckpointError(f"head {name}: {error}; {remedy}") from error
    if found != head["fingerprint"]:
        made_by = manifest.engine["versions"]["raybert"]
        others = "" if made_by == VERSION else f", or raybert {VERSION} answers otherwise than {made_by} did"
        raise CheckpointError(
            f"head {name}: {model} is another checkpoint than the run's (fingerprint {found[:12]}, the run's "
            f"{head['fingerprint'][:12]}){others}; {remedy}"
        )
    return task


@contextmanager
def answers_here(tasks: Mapping[str, Task], engine: Mapping[str, Any]) -> Iterator[tuple[Answer, tuple[str, ...]]]:
    """Heads in this process, with the run's own settings; where it can't obey them, with its own of the same dtype.

    Args:
        tasks: the heads.
        engine: of the manifest.

    Yields:
        Who answers, and what there is to note.

    Raises:
        DeviceError: the dtype is not to be had here.
    """
    from raybert.engine import EngineSettings, choose_settings, default_threads
    from raybert.predict import Heads

    settings = EngineSettings.from_dict(engine)
    notes: tuple[str, ...] = ()
    try:
        settings.check()
    except DeviceError as error:
        notes = (f"not the run's own arithmetic: {error}",)
        settings = choose_settings(dtype=settings.dtype, tasks=tasks.values())
    with Heads(tasks, settings, threads=default_threads(settings)) as heads:
        yield heads, notes


def compare_heads(
    manifest: Manifest, tasks: Mapping[str, Task], sample: Sample, answer: Answer
) -> tuple[Compared, ...]:
    """Every column of every head against the answers to the sample's items."""
    texts, seconds = row_texts(sample.again)
    tolerance = TOLERANCES[manifest.engine["dtype"]]
    vector_type = manifest.settings["vector_type"]
    answers = answer(texts if seconds is None else list(zip(texts, seconds, strict=True)))
    program = group_heads(tasks, pairs=seconds is not None)
    encoded = program.encode(texts, seconds)
    found = []
    for name, task in tasks.items():
        fields = [sample.stored.schema.field(each.name) for each in task.columns(name, vector_type)]
        windows = encoded[program.encoding_of(name)]
        forms = stored_forms(name, fields, sample.stored, task.items(texts, seconds))
        now = [answer_form(name, fields, one, vector_type) for one in answers[name]]
        for column, values in ((f"{name}_tokens", windows.tokens), (f"{name}_truncated", windows.truncated)):
            _add(forms, column, sample.stored[column].to_pylist())
            _add(now, column, values.tolist())
        found.append(_compare(name, sample.places, forms, now, tolerance))
    return tuple(found)


def _compare_input(sample: Sample) -> Compared:
    """Kept columns against the input, and rows that reading gives no more."""
    names = [name for name in sample.again.column_names if name not in (TEXT, PAIR)]
    stored, again = (table.select(names).to_pylist() for table in (sample.stored, sample.again))
    found = _compare("input", sample.places, stored, again, EXACT)
    for place, why in sample.refused:
        found.add(Difference(place=place, where="text", stored="a row", computed=f"none ({why})"))
    return replace(found, rows=len(sample.places) + len(sample.refused))


def _compare(
    name: str, places: Sequence[Place], stored: Sequence[Form], now: Sequence[Form], tolerance: Tolerance
) -> Compared:
    comparison, found = Comparison(tolerance), Compared(name=name, rows=len(places), tolerance=tolerance)
    for place, before, after in zip(places, stored, now, strict=True):
        column = first_difference(comparison, before, after)
        if column is not None:
            where, one, other = innermost(tolerance, column, before[column], after.get(column))
            found.add(Difference(place=place, where=where, stored=shown(one), computed=told(one, other)))
    return replace(found, worst_cosine=comparison.worst_cosine, largest_difference=comparison.largest_difference)


def _add(forms: Sequence[Form], column: str, values: Sequence[Any]) -> None:
    for form, value in zip(forms, values, strict=True):
        form[column] = value
