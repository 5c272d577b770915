"""What a sample foretells: arithmetic over its figures, and one measurement through the real stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayTaskError, WorkerCrashedError

from raybert.cluster import Shares, share_out
from raybert.config import HeadSpec
from raybert.data import foretell
from raybert.data.calibrate import Calibration, calibrate, forecast, sized, spread_out
from raybert.data.flow import make_job
from raybert.data.plan import Options, make_plan
from raybert.data.splits import InputFile, stream_task
from raybert.data.stages import Job, load_check
from tests.jobs import some_texts, write_lines

FOUND = Calibration(
    rows=1000,
    tokens=20.0,
    forwarded=18.0,
    spread=0.02,
    read_s=5e-6,
    encode_s=30e-6,
    model_s=2e-3,
    write_s=8e-6,
    bytes=1600.0,
    load_s=3.0,
)
GPU = Shares(least=4, most=4, cpus=0.5, gpus=1.0, streams=1, readers=1, encoders=8, writers=1)
seconds = st.floats(1e-7, 1e-1)


def test_on_cpus_all_stages_share_them() -> None:
    shares = share_out([{"CPU": 2.0}])
    found = forecast(FOUND, 100_000, shares, 2.0)
    assert found.bound == "CPUs"
    per_row = (2 * 2e-3 + 43e-6) / 2
    assert found.seconds == pytest.approx(100_000 * per_row + 3.0 + 16_384 * 43e-6)
    assert found.low < found.seconds < found.high
    assert (found.rows, found.tokens, found.bytes) == (100_000, 2_000_000, 160_000_000)


def test_on_gpus_the_slowest_stage_decides() -> None:
    fast = replace(FOUND, model_s=20e-6)
    assert forecast(fast, 10**6, GPU, 32.0).bound == "write"
    assert forecast(fast, 10**6, replace(GPU, writers=4), 32.0).bound in ("model", "read")
    assert forecast(fast, 10**6, GPU, 32.0).feeders == pytest.approx(43 / 20)


@given(seconds, seconds, seconds, seconds, st.integers(1, 64))
def test_sized_stages_never_hold_up_what_the_cpus_could_do(
    read: float, encode: float, model: float, write: float, cpus: int
) -> None:
    shares = share_out([{"CPU": float(cpus)}])
    found = replace(FOUND, read_s=read, encode_s=encode, model_s=model, write_s=write)
    better = sized(found, shares, float(cpus))
    assert (better.least, better.most, better.streams) == (shares.least, shares.most, shares.streams)
    unbound = replace(better, readers=10**6, encoders=10**6, writers=10**6)
    ahead, ideal = (forecast(found, 10**6, each, float(cpus)) for each in (better, unbound))
    assert ideal.bound in ("model", "CPUs")
    assert ahead.seconds == pytest.approx(ideal.seconds)
    assert better.readers + better.encoders + better.writers <= cpus + 3  # each is rounded up


@pytest.mark.parametrize("error", [WorkerCrashedError(), RayTaskError("calibrate", "KeyError: 1", KeyError(1))])
def test_a_row_that_ends_the_calibration_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(foretell, "call_on_worker", fails)
    assert foretell.measure([], cast("Job", None), GPU, 1.0) is None
    assert foretell.adapt(None, 10, GPU, fixed=False) == (GPU, None)


def test_a_sample_is_spread_from_first_to_last() -> None:
    tasks = [stream_task(InputFile(number=at, path=str(at), size=1, version="")) for at in range(100)]
    chosen = [task.file.number for task in spread_out(tasks)]
    assert chosen == sorted(set(chosen))
    assert (chosen[0], chosen[-1], len(chosen)) == (0, 99, 16)
    assert spread_out(tasks[:5]) == tasks[:5]


def test_a_sample_through_the_real_stages(tiny: Path, tmp_path: Path) -> None:
    texts = some_texts(300)
    rows = [{"text": text if at % 10 else None} for at, text in enumerate(texts)]
    write_lines(tmp_path / "in" / "a.jsonl", rows)
    write_lines(tmp_path / "in" / "b.jsonl", [])
    spec = HeadSpec(name="v", task="embed", model=str(tiny), revision=None, options={})
    plan = make_plan([spec], Options(input=str(tmp_path / "in"), output=str(tmp_path / "out")))
    manifest = plan.new_manifest(load_check([spec], "cpu", "float32", None))
    shares = share_out([{"CPU": 2.0}])
    tasks = [task for of_file in plan.tasks.values() for task in of_file]
    found = calibrate(tasks, make_job(plan, manifest, shares, ""), 0.5)
    assert found is not None
    good = [text for at, text in enumerate(texts) if at % 10]
    windows = plan.program.tasks["v"].encode(good)
    assert found.rows == 300
    assert found.tokens == pytest.approx(windows.tokens.sum() / 300, rel=0.2)
    assert min(found.read_s, found.encode_s, found.model_s, found.write_s, found.bytes) > 0
    assert not (tmp_path / "out").exists()
    assert calibrate(tasks[1:], make_job(plan, manifest, shares, ""), 0.5) is None
