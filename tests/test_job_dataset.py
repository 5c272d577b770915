"""Heads over any Ray dataset (`raybert.data.apply`), and how Ray Data plans the job's stages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import raybert
import raybert.data
from raybert.cluster import share_out
from raybert.config import HeadSpec
from raybert.data.files import InputRoot
from raybert.data.pipeline import MOST_DEATHS, Tries, build, start_tries
from raybert.data.read import ReadSpec
from raybert.data.splits import InputFile, stream_task
from raybert.data.stages import Job
from raybert.errors import CheckpointError, InputError, SettingsError
from tests.jobs import assert_near, shared_ray, some_texts, vectors


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    with shared_ray():
        yield


def dataset(columns: dict[str, Any], blocks: int = 1) -> Any:
    import ray.data

    table = pa.table(columns)
    step = -(-len(table) // blocks)
    return ray.data.from_arrow([table.slice(at, step) for at in range(0, len(table), step)])


def consumed(ds: Any, sort_by: str) -> pa.Table:
    """All rows; Ray gives no order among blocks."""
    import ray

    blocks = [block for block in ray.get(ds.to_arrow_refs()) if len(block)]
    return pa.concat_tables(blocks).sort_by(sort_by).combine_chunks()


def test_apply_adds_the_vectors_of_load_and_null_for_a_row_without_a_text(tiny):
    texts = some_texts(30)
    texts[4] = texts[17] = None
    columns = {"key": [{"n": at} for at in range(30)], "at": range(30), "words": texts}
    heads = {"v": (str(tiny), "embed"), "w": (str(tiny), "embed", {"dimensions": 4})}
    ds = raybert.data.apply(
        dataset(columns, blocks=3), heads, text_column="words", dtype="float32", actors=1, cpus_per_actor=0.5
    )
    found = consumed(ds, "at")
    assert found.column_names == [
        *columns,
        *(f"{name}{end}" for name in "vw" for end in ("", "_tokens", "_truncated")),
    ]
    for name, values in columns.items():
        assert found[name].to_pylist() == list(values)
    for name in found.column_names[3:]:
        assert [at for at, value in enumerate(found[name].is_null().to_pylist()) if value] == [4, 17], name
    assert found.schema.field("v").type == pa.list_(pa.float32(), 32)
    expected = raybert.load(str(tiny), "embed", dtype="float32")([text for text in texts if text is not None])
    good = found.filter(found["v"].is_valid())
    assert_near(vectors(good, "v"), expected)
    assert_near(vectors(good, "w"), expected[:, :4])
    assert good["v_tokens"].to_pylist()[0] == 2


def test_apply_is_lazy_and_goes_on_as_any_dataset(tiny):
    """A block without a good text, halves, and stages of the user's before and after it."""
    from ray.data.expressions import col

    texts = [None, None, "one", "two", "three", "four"]
    ds = dataset({"text": texts, "at": range(6)}, blocks=3).filter(expr=col("at") != 3)
    ds = raybert.data.apply(ds, {"v": (str(tiny), "embed")}, dtype="float32", vector_type="float16")
    ds = ds.map_batches(lambda block: block.select(["at", "v"]), batch_format="pyarrow")
    found = consumed(ds, "at")
    assert found["at"].to_pylist() == [0, 1, 2, 4, 5]
    assert found["v"].is_null().to_pylist() == [True, True, False, False, False]
    assert found.schema.field("v").type == pa.list_(pa.float16(), 32)
    expected = raybert.load(str(tiny), "embed", dtype="float32")(["one", "three", "four"])
    got = vectors(found.slice(2), "v")
    np.testing.assert_allclose(got.astype(np.float32), expected, rtol=1e-3, atol=1e-3)


def test_apply_refuses_at_once_what_ray_would_let_pass(tiny, tmp_path):
    from ray.data.expressions import col

    ds = dataset({"text": ["a"], "v_tokens": [1]})
    heads = {"v": (str(tiny), "embed")}
    with pytest.raises(SettingsError, match="text_column: 'txet' is none of text, v_tokens; did you mean 'text'"):
        raybert.data.apply(ds, heads, text_column="txet")
    with pytest.raises(SettingsError, match="head 'v': the dataset has a column 'v_tokens'"):
        raybert.data.apply(ds, heads)
    with pytest.raises(SettingsError, match="vector_type: 'float64' is none of"):
        raybert.data.apply(ds, heads, vector_type="float64")
    with pytest.raises(CheckpointError):
        raybert.data.apply(ds, {"w": (str(tmp_path / "nothing"), "embed")})
    empty = dataset({"text": ["a"]}).filter(expr=col("text") == "b").map_batches(lambda block: block)
    with pytest.raises(InputError, match="no rows, so no columns"):
        raybert.data.apply(empty, heads)


@pytest.mark.parametrize(
    ("nodes", "asked"),
    [
        ([{"CPU": 2.0}], {}),
        ([{"CPU": 2.0}], {"actors": (1, 2)}),
        *(([{"CPU": 2.0}], {"cpus_per_actor": cpus}) for cpus in (0.1, 0.15, 0.2, 1.0)),
        ([{"CPU": 16.0, "GPU": 2.0}], {}),
    ],
)
def test_the_optimised_plan_keeps_the_four_stages_apart(capsys, tmp_path, nodes, asked):
    """Ray fuses neighbours that ask for equal resources: the tokenizer would run in the model's process."""
    job = Job(
        heads=(HeadSpec(name="v", task="embed", model="m"),),
        fingerprints={},
        engine={},
        streams=1,
        read=ReadSpec(
            root=InputRoot(uri=str(tmp_path), is_file=False, shown="in"),
            format="jsonl",
            text_column="text",
            keep=pa.schema([]),
            split_rows=1,
            split_bytes=1,
        ),
        output=str(tmp_path / "out"),
        shaping="",
        schema=b"",
        vector_type="float32",
        driver="",
    )
    tasks = [stream_task(InputFile(number=at, path=f"{at}.jsonl", size=1, version="")) for at in range(3)]
    build(tasks, job, share_out(nodes, **asked), start_tries()).explain()
    optimised = capsys.readouterr().out.rpartition("Physical Plan (Optimized)")[2]
    stages = [line.strip(" +-") for line in optimised.splitlines() if "Operator[" in line]
    assert stages == [
        "TaskPoolMapOperator[MapBatches(_write)]",
        "ActorPoolMapOperator[MapBatches(_Model)]",
        "TaskPoolMapOperator[MapBatches(_encode)]",
        "TaskPoolMapOperator[MapBatches(_read)]",
    ]


def test_tries_are_counted_until_one_ends():
    tries = Tries()
    assert [tries.begin("a") for _ in range(MOST_DEATHS + 2)] == [True] * MOST_DEATHS + [False] * 2
    assert tries.begin("b")
    tries.end("b")
    tries.end("b")
    assert [tries.begin("b") for _ in range(MOST_DEATHS + 1)] == [True] * MOST_DEATHS + [False]
    assert tries.reached("c", 5) == 5
    tries.reach("c", 9)
    tries.reach("c", 7)
    assert tries.reached("c", 5) == 9
    tries.put_aside("a", {"begin": 3})
    assert tries.aside() == [{"begin": 3}]
