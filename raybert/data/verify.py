"""Proof that a run lost nothing: its parts, quarantine and receipts against its manifest.

Per part: what its footer says against its name, the manifest and the quarantine. Per input file: the row
ranges follow one another from row 0 to the part with ``last``. In the folder: nothing else. Every footer is
checked against its own digest. With ``full`` the files are read too: content digests are computed anew
(with the footer's digest that covers every byte of every part and quarantine file), every row number belongs
where it stands and stands there once, the rows' tokens are those of the receipt, and every quarantined row has one
of the reasons that there are. What answers may be is no matter of conservation: see `raybert.data.parity`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raybert.data.manifest import NAME as MANIFEST
from raybert.data.manifest import Manifest, load, schema_lines
from raybert.data.part import (
    QUARANTINE,
    Receipt,
    content_digest,
    quarantine_name,
    read_footer,
    stored_schema,
)
from raybert.data.rows import REASONS
from raybert.data.splits import InputFile, PartName, parse_part_name, split_hash
from raybert.data.store import TEMPORARIES, Store
from raybert.errors import OutputError, UsageError

_THREADS = 16  # footers wait for the store, not for a core


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What ``verify`` found.

    Attributes:
        problems: one line each: where, what, expected, found.
        files: input files of the manifest.
        parts: parts that belong to the run; the counts below are theirs, by their receipts.
        rows_in: rows of their splits.
        ok_rows: rows in the parts.
        quarantined: rows in the quarantine.
        filtered: rows that a filter took out.
        tokens: tokens per head, before truncation.
    """

    problems: tuple[str, ...]
    files: int
    parts: int
    rows_in: int
    ok_rows: int
    quarantined: int
    filtered: int
    tokens: dict[str, int]

    @property
    def ok(self) -> bool:
        """No problem was found."""
        return not self.problems


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """One part after its checks.

    Attributes:
        name: its name.
        spelled: what the name spells.
        receipt: None where the footer can't be read.
        belongs: False for a part of another file, file version or settings.
        problems: what is wrong with it.
    """

    name: str
    spelled: PartName
    receipt: Receipt | None
    belongs: bool
    problems: tuple[str, ...]


def verify(output: str | os.PathLike[str] | Store, *, full: bool = False) -> VerifyReport:
    """Check a run's folder.

    Args:
        output: the folder's path or URI, or its store.
        full: read every file, not only the footers.

    Raises:
        UsageError: there is no run in that folder.
        OutputError: the manifest is damaged, or the store refused to list.
    """
    store = output if isinstance(output, Store) else Store(output)
    manifest = load(store)
    if manifest is None:
        raise UsageError(f"{store.place(MANIFEST)}: not found; name the --output folder of a run")
    names = store.list()
    check = _PartCheck(store, manifest, names, full=full)
    parts = [(name, spelled) for name in names if (spelled := parse_part_name(name))]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1) if full else _THREADS) as pool:
        checked = list(pool.map(lambda part: check(*part), parts))
    problems = [line for part in checked for line in part.problems]
    problems += [*_gaps(manifest.files, checked), *_strangers(names)]
    receipts = [part.receipt for part in checked if part.belongs and part.receipt]
    tokens: Counter[str] = Counter()
    for receipt in receipts:
        tokens.update(receipt.tokens)
    return VerifyReport(
        problems=tuple(problems),
        files=len(manifest.files),
        parts=len(receipts),
        rows_in=sum(receipt.rows_in for receipt in receipts),
        ok_rows=sum(receipt.ok for receipt in receipts),
        quarantined=sum(receipt.quarantined for receipt in receipts),
        filtered=sum(receipt.filtered for receipt in receipts),
        tokens=dict(tokens),
    )


class _PartCheck:
    """The checks of one part, given what the run's parts have in common."""

    def __init__(self, store: Store, manifest: Manifest, names: Iterable[str], *, full: bool) -> None:
        self._store = store
        self._full = full
        self._names = set(names)
        self._files = {file.number: file for file in manifest.files}
        self._shaping = manifest.shaping
        self._fingerprints = manifest.fingerprints
        self._schema = stored_schema(manifest.schema)

    def __call__(self, name: str, spelled: PartName) -> _Checked:
        receipt, belongs, problems = None, False, []
        try:
            footer = read_footer(self._store, name)
            receipt = footer.receipt
            if receipt is None:
                problems.append("no receipt; it belongs in the quarantine")
            else:
                belongs = self._belongs(spelled, receipt)
                problems += self._against_manifest(spelled, receipt, belongs=belongs)
                problems += _differing("rows in the file", receipt.ok, footer.rows)
                if not footer.schema.equals(self._schema, check_metadata=True):
                    problems += _differing("schema", _words(self._schema), _words(footer.schema))
                problems += self._quarantine(name, receipt)
                if self._full:
                    problems += self._rows(name, receipt, footer.content_sha256)
        except FileNotFoundError:
            problems.append("it vanished while it was checked")
        except OutputError as error:
            problems.append(str(error))
        lines = tuple(line if name in line else f"{name}: {line}" for line in problems)
        return _Checked(name=name, spelled=spelled, receipt=receipt, belongs=belongs, problems=lines)

    def _belongs(self, spelled: PartName, receipt: Receipt) -> bool:
        file = self._files.get(spelled.file)
        if file is None:
            return False
        end = spelled.begin + receipt.rows_in
        return split_hash(file, spelled.begin, end, self._shaping) == spelled.hash

    def _against_manifest(self, spelled: PartName, receipt: Receipt, *, belongs: bool) -> list[str]:
        problems = []
        if not belongs:
            problems.append(
                f"stale: rows {spelled.begin} to {spelled.begin + receipt.rows_in} of file {spelled.file} "
                "have another name in this run; delete it"
            )
        problems += _differing("file number in the receipt", spelled.file, receipt.file)
        problems += _differing("first row in the receipt", spelled.begin, receipt.first_row)
        rows_out = receipt.ok + receipt.quarantined + receipt.filtered
        problems += _differing("ok + quarantined + filtered", receipt.rows_in, rows_out)
        problems += _differing("heads with tokens", sorted(self._fingerprints), sorted(receipt.tokens))
        for head in sorted({*self._fingerprints, *receipt.fingerprints}):
            expected, found = self._fingerprints.get(head), receipt.fingerprints.get(head)
            problems += _differing(f"fingerprint of head {head}", expected, found)
        return problems

    def _quarantine(self, part: str, receipt: Receipt) -> list[str]:
        name = quarantine_name(part)
        found = read_footer(self._store, name).rows if name in self._names else "no file"
        return _differing("rows in the quarantine", receipt.quarantined or "no file", found)

    def _rows(self, name: str, receipt: Receipt, content_sha256: str) -> list[str]:
        """Digests and what the rows say; they are looked at only where the digests hold."""
        digests = {name: content_sha256}
        if receipt.quarantined and quarantine_name(name) in self._names:
            digests[quarantine_name(name)] = read_footer(self._store, quarantine_name(name)).content_sha256
        problems, seen = [], []
        for each, expected in digests.items():
            differs = _differing(f"{each}: content_sha256", expected, content_digest(self._store, each))
            if differs:
                problems += differs
                continue
            tokens = [f"{head}_tokens" for head in receipt.tokens if f"{head}_tokens" in self._schema.names]
            with self._store.open(each) as file, self._store.blame(each):
                table = pq.ParquetFile(file).read(["_file", "_row", *(tokens if each == name else ["reason"])])
            wrong, rows = _row_numbers(table, receipt)
            wrong += _tokens(table, receipt) if each == name else _reasons(table)
            problems += [f"{each}: {line}" for line in wrong]
            seen.append(rows)
        if len(seen) == 2 and (twice := np.intersect1d(seen[0], seen[1])).size:
            problems.append(f"{twice.size} rows are in the quarantine too, the first is {twice[0]}")
        return problems


def _row_numbers(table: pa.Table, receipt: Receipt) -> tuple[list[str], npt.NDArray[np.int64]]:
    places = [table[name] for name in ("_file", "_row") if name in table.column_names]
    if len(places) != 2 or any(column.null_count for column in places):
        return ["_file and _row: expected two columns without nulls"], np.zeros(0, np.int64)
    files, rows = (column.to_numpy() for column in places)
    problems = []
    if (others := files[files != receipt.file]).size:
        problems += _differing("_file", receipt.file, int(others[0]))
    if (falls := np.flatnonzero(np.diff(rows) <= 0)).size:
        problems.append(f"_row: expected ascending, found {rows[falls[0] + 1]} after {rows[falls[0]]}")
    end = receipt.first_row + receipt.rows_in
    if (outside := rows[(rows < receipt.first_row) | (rows >= end)]).size:
        problems.append(f"_row: expected {receipt.first_row} to {end - 1}, found {outside[0]}")
    return problems, rows


def _tokens(table: pa.Table, receipt: Receipt) -> list[str]:
    """What the rows' own counts of tokens sum up to, against the receipt."""
    problems = []
    for head, expected in receipt.tokens.items():
        if f"{head}_tokens" in table.column_names:
            total = pc.sum(table[f"{head}_tokens"], min_count=0).as_py()
            problems += _differing(f"{head}_tokens of all rows", expected, total)
    return problems


def _reasons(table: pa.Table) -> list[str]:
    """Every row of the quarantine has a reason that there is."""
    if "reason" not in table.column_names:
        return ["reason: no such column"]
    others = [reason for reason in table["reason"].unique().to_pylist() if reason not in REASONS]
    return _differing("reason", f"one of {', '.join(REASONS)}", others[0]) if others else []


def _differing(what: str, expected: object, found: object) -> list[str]:
    return [] if expected == found else [f"{what}: expected {expected}, found {found}"]


def _words(schema: pa.Schema) -> str:
    return ", ".join(schema_lines(schema))


def _gaps(files: Iterable[InputFile], checked: Iterable[_Checked]) -> Iterator[str]:
    """Where the row ranges of a file leave a gap, overlap, or don't end."""
    by_file: dict[int, list[_Checked]] = {}
    for part in checked:
        if part.belongs or part.receipt is None:
            by_file.setdefault(part.spelled.file, []).append(part)
    for file in files:
        parts = sorted(by_file.get(file.number, []), key=lambda part: part.spelled.begin)
        yield from (f"file {file.number} ({file.path}): {line}" for line in _gaps_in_file(parts))


def _gaps_in_file(parts: Iterable[_Checked]) -> Iterator[str]:
    expected: int | None = 0  # None after a part whose end can't be read
    last = False
    for part in parts:
        begin = part.spelled.begin
        if last:
            yield f"{part.name} begins at row {begin}, after the part with the file's last row"
        elif expected is not None and begin > expected:
            yield f"rows {expected} to {begin - 1} are in no part"
        elif expected is not None and begin < expected:
            yield f"{part.name} begins at row {begin}, inside an earlier part that ends at {expected}"
        if part.receipt is None:
            expected = None
        else:
            expected = max(expected or 0, begin + part.receipt.rows_in)
            last = last or part.receipt.last
    if not last:
        yield f"rows from {expected} on are in no part" if expected is not None else "no readable last part"


def _strangers(names: Iterable[str]) -> Iterator[str]:
    """What lies in the folder and is no part, no part's quarantine and no report."""
    known = set(names)
    for name in names:
        folder, _, base = name.rpartition("/")
        if folder == TEMPORARIES:
            yield f"{name}: a temporary that a killed writer left; the next run sweeps it"
        elif folder == QUARANTINE and parse_part_name(base):
            if base not in known:
                yield f"{name}: its part is missing"
        elif not (
            (folder == "" and parse_part_name(base)) or (folder == "_raybert" and base.endswith((".json", ".html")))
        ):
            yield f"{name}: a stranger; move it out of the output"
