"""Laws 1 and 3: an answer depends on its text alone, and stands where its text stood."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import raybert
from raybert import engine, predict
from raybert.checkpoint.folder import open_checkpoint
from raybert.config import HeadSpec
from raybert.engine import EngineSettings, Trunk, choose_settings, gather, library_versions
from raybert.errors import DeviceError, SettingsError
from raybert.model.loading import load_trunk
from raybert.model.packed import Encoder, TokenBatch
from raybert.predict import Predictor
from raybert.tasks import make_task
from raybert.text.encoding import Windows
from tests.tiny import stdlib_docstrings, write_tiny_checkpoint
from tests.vectors import assert_same, one_thread_a_module  # noqa: F401  a fixture

TEXTS = 30


def mixed_texts(count: int) -> list[str]:
    """Real texts of all lengths, in an order that says nothing about length."""
    texts = sorted(stdlib_docstrings(1000), key=len)[:: 1000 // count][:count]
    random.Random(1).shuffle(texts)
    return texts


@functools.cache
def fp32() -> EngineSettings:
    return choose_settings(device="cpu", dtype="float32")


def settings_of(**changes: Any) -> EngineSettings:
    return dataclasses.replace(fp32(), **changes)


def predictor_of(model: Path | str, *, threads: int = 1, **changes: Any) -> Predictor:
    task = make_task(HeadSpec(name="embed", task="embed", model=str(model)))
    return Predictor(task, settings_of(**changes), threads=threads)


@pytest.fixture(scope="module")
def demo() -> Predictor:
    return raybert.load("demo", "embed", dtype="float32", threads=2)


@pytest.fixture(scope="module")
def demo_texts() -> list[str]:
    return mixed_texts(TEXTS)


@pytest.fixture(scope="module")
def demo_alone(demo: Predictor, demo_texts: list[str]) -> np.ndarray:
    return np.concatenate([demo([text]) for text in demo_texts])


MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one head, relu": {"num_attention_heads": 1, "hidden_act": "relu"},
    "three layers, gelu_new": {"num_hidden_layers": 3, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
    "one token type, silu": {"type_vocab_size": 1, "hidden_act": "silu"},
    "three token types": {"type_vocab_size": 3},
    "decoder": {"is_decoder": True},
    "relative positions": {"position_embedding_type": "relative_key_query"},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model"), config=MODELS[request.param])


# Law 1


def test_batch_is_single_on_the_real_model(demo: Predictor, demo_texts: list[str], demo_alone: np.ndarray) -> None:
    assert_same(demo(demo_texts), demo_alone)
    for seed in range(3):
        order = random.Random(seed).sample(range(TEXTS), k=TEXTS - 5 * seed)
        assert_same(demo([demo_texts[row] for row in order]), demo_alone[order])


def test_batch_is_single_on_tiny_models(model: Path) -> None:
    texts = mixed_texts(TEXTS)
    alone = predictor_of(model)
    expected = np.concatenate([alone([text]) for text in texts])
    for threads, budget in [(1, 2048), (2, 300), (3, 1)]:
        with predictor_of(model, threads=threads, budget=budget) as predictor:
            assert_same(predictor(texts), expected)
            order = random.Random(budget).sample(range(TEXTS), k=TEXTS)
            assert_same(predictor([texts[row] for row in order]), expected[order])


def test_answers_are_those_of_the_module_form(model: Path) -> None:
    texts = mixed_texts(12)
    module, _ = load_trunk(open_checkpoint(model))
    predictor = predictor_of(model)
    expected = []
    for text in texts:
        ids = torch.from_numpy(predictor.task.encode([text]).ids.astype(np.int64))
        with torch.no_grad():
            expected.append(module(input_ids=ids[None]).last_hidden_state[0].mean(0).numpy())
    assert_same(predictor(texts), np.stack(expected))


# Law 3


@pytest.fixture(scope="module")
def answered(tiny: Path) -> tuple[Predictor, list[str], np.ndarray]:
    """A tiny model with a small budget, texts, and its answers to them."""
    predictor, texts = predictor_of(tiny, budget=200), mixed_texts(TEXTS)
    return predictor, texts, predictor(texts)


@given(rows=st.lists(st.integers(0, TEXTS - 1), max_size=60))
def test_order_in_is_order_out(answered: tuple[Predictor, list[str], np.ndarray], rows: list[int]) -> None:
    predictor, texts, expected = answered
    found = predictor([texts[row] for row in rows])
    assert found.dtype == np.float32
    assert_same(found, expected[rows])


@pytest.mark.parametrize("chunk", [1, 7, 29, 30, 31])
def test_order_over_chunks(tiny: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    texts = mixed_texts(TEXTS)
    with predictor_of(tiny, threads=2) as predictor:
        expected = predictor(texts)
        monkeypatch.setattr(predict, "_CHUNK_ITEMS", chunk)
        assert_same(predictor(texts), expected)


def test_a_call_of_more_than_one_real_chunk(tiny: Path) -> None:
    texts = [f"text number {row}" for row in range(2 * predict._CHUNK_ITEMS + 3)]
    with predictor_of(tiny, threads=2) as predictor:
        found = predictor(texts)
        some = [0, 4095, 4096, 5000, 8191, 8192, 8194]
        assert_same(found[some], predictor([texts[row] for row in some]))


@pytest.mark.parametrize("linear", ["torch", "onednn"])
def test_bits_do_not_depend_on_the_number_of_streams(model: Path, linear: str) -> None:
    settings = settings_of()
    kernels = dataclasses.replace(settings.kernels, linear=linear)
    settings = dataclasses.replace(settings, kernels=kernels, budget=200)
    try:
        settings.check()
    except DeviceError:
        pytest.skip(f"this machine's torch has no {linear} linears")
    task = make_task(HeadSpec(name="embed", task="embed", model=str(model)))
    windows = task.encode(mixed_texts(TEXTS))
    answers = []
    for threads in (1, 2, 3, 1):
        trunk = Trunk({"embed": task}, settings, threads=threads)
        answers.append(trunk.run(windows, {"embed": None})["embed"].values)
        trunk.close()
    assert all(np.array_equal(answer, answers[0]) for answer in answers)


def test_bits_of_the_real_model_do_not_depend_on_the_number_of_streams(demo_texts: list[str]) -> None:
    task = make_task(HeadSpec(name="embed", task="embed", model="demo"))
    windows = task.encode(demo_texts[:20])
    settings = settings_of()
    answers = []
    for threads in (1, 2, 3):
        trunk = Trunk({"embed": task}, settings, threads=threads)
        answers.append(trunk.run(windows, {"embed": None})["embed"].values)
        trunk.close()
    assert np.array_equal(answers[0], answers[1])
    assert np.array_equal(answers[0], answers[2])


class RecordingEncoder:
    """The real encoder, its batches kept."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.device, self.dtype = encoder, encoder.device, encoder.dtype
        self.batches: list[tuple[int, ...]] = []

    def __call__(self, batch: TokenBatch, *, first_only: bool = False) -> torch.Tensor:
        self.batches.append(tuple(batch.ids_T.tolist()))
        return self.encoder(batch, first_only=first_only)


def batches_of(trunk: Trunk, windows: Windows, *, spread: bool) -> list[tuple[int, ...]]:
    encoder = RecordingEncoder(trunk._encoder)
    trunk._encoder = encoder
    trunk.run(windows, {"embed": None}, spread=spread)
    trunk.close()
    return sorted(encoder.batches)


def test_batches_depend_on_the_number_of_streams_only_where_asked(tiny: Path) -> None:
    # The bits above might be equal by chance; equal batches make them so (law 7).
    task = make_task(HeadSpec(name="embed", task="embed", model=str(tiny)))
    windows = task.encode(mixed_texts(TEXTS))
    settings = settings_of(budget=300)
    found = [batches_of(Trunk({"embed": task}, settings, threads=n), windows, spread=False) for n in (1, 2, 3)]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 3
    assert all(len(ids) <= 300 for ids in found[0])
    large = settings_of(budget=10**6)
    for threads in (1, 2, 3):
        assert len(batches_of(Trunk({"embed": task}, large, threads=threads), windows, spread=False)) == 1
        spread = batches_of(Trunk({"embed": task}, large, threads=threads), windows, spread=True)
        assert len(spread) == threads, "a small call is divided over all streams"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["GPU", "Python", "CPU"],
)
def test_a_batch_without_memory_is_halved(tiny: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Down to what fits; then the next batch is tried whole again."""
    texts = mixed_texts(TEXTS)
    expected = predictor_of(tiny)(texts)
    predictor, room, computed = predictor_of(tiny), 300, []
    compute = Trunk._compute

    def short_of_memory(self: Trunk, sequences: Any, starts: Any, index: np.ndarray, wanted: Any) -> Any:
        tokens = int(sequences.lengths[index].sum())
        computed.append(tokens)
        if tokens > room:
            raise error
        return compute(self, sequences, starts, index, wanted)

    monkeypatch.setattr(Trunk, "_compute", short_of_memory)
    assert_same(predictor(texts), expected)
    assert max(computed) > room
    room = 3  # no window of these texts fits
    with pytest.raises(type(error)):
        predictor(texts)
    other = RuntimeError("shapes do not match")
    monkeypatch.setattr(Trunk, "_compute", lambda *_: (_ for _ in ()).throw(other))
    with pytest.raises(RuntimeError, match="shapes"):
        predictor(texts)


def test_heads_of_one_trunk_share_it(tiny: Path) -> None:
    specs = {
        "plain": HeadSpec(name="plain", task="embed", model=str(tiny)),
        "short": HeadSpec(name="short", task="embed", model=str(tiny), options={"dimensions": 5, "normalize": True}),
    }
    tasks = {name: make_task(spec) for name, spec in specs.items()}
    assert tasks["plain"].encoding_key(pairs=False) == tasks["short"].encoding_key(pairs=False)
    trunk = Trunk(tasks, settings_of())
    windows = tasks["plain"].encode(mixed_texts(9))
    both = trunk.run(windows, {"plain": None, "short": None})
    for name, task in tasks.items():
        lone = Trunk({name: task}, settings_of())
        assert np.array_equal(both[name].values, lone.run(windows, {name: None})[name].values)
        lone.close()
    assert trunk.run(windows, {"short": None}).keys() == {"short"}
    trunk.close()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.booleans(), st.randoms(use_true_random=False))
def test_gather_takes_windows_in_any_order(lengths: list[int], typed: bool, rng: random.Random) -> None:
    total = sum(lengths)
    ids = np.arange(100, 100 + total, dtype=np.int32)
    windows = Windows(
        ids=ids,
        lengths=np.array(lengths, np.int32),
        row_of_window=np.arange(len(lengths), dtype=np.int32),
        tokens=np.array(lengths, np.int32),
        truncated=np.zeros(len(lengths), np.bool_),
        type_ids=(ids % 2).astype(np.int8) if typed else None,
    )
    index = np.array(rng.sample(range(len(lengths)), k=rng.randint(1, len(lengths))))
    batch = gather(windows, windows.starts, index, torch.device("cpu"))
    rows = np.split(ids, np.cumsum(lengths)[:-1])
    expected = np.concatenate([rows[row] for row in index])
    assert batch.ids_T.tolist() == expected.tolist()
    assert [group.length for group in batch.layout.groups for _ in range(group.count)] == [lengths[i] for i in index]
    if typed:
        assert batch.type_ids_T is not None
        assert batch.type_ids_T.tolist() == (expected % 2).tolist()
    else:
        assert batch.type_ids_T is None


# Settings


def test_settings_come_back_from_a_manifest() -> None:
    settings = choose_settings(device="cpu", dtype="float32", budget=77)
    assert settings.budget == 77
    assert EngineSettings.from_dict(json.loads(json.dumps(settings.as_dict()))) == settings
    settings.check()


def test_auto_is_resolved() -> None:
    settings = choose_settings()
    assert settings.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert settings.dtype in ("bfloat16", "float32")
    assert settings.budget >= 1
    assert settings.versions == library_versions()
    settings.check()


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        ({"device": "gpu"}, SettingsError, "device: 'gpu' is none of auto, cpu, cuda"),
        ({"dtype": "bf16"}, SettingsError, "dtype: 'bf16' is none of .*bfloat16"),
        ({"dtype": torch.float32}, SettingsError, "did you mean 'float32'"),
        ({"device": "cpu", "dtype": "float16"}, DeviceError, "a CPU emulates it.*pass bfloat16 or float32"),
        ({"budget": 0}, SettingsError, "budget 0: takes a whole number of tokens from 1"),
        ({"budget": -5}, SettingsError, "budget -5"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(wanted: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        choose_settings(**wanted)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="cuda: torch sees none on this machine"):
        choose_settings(device="cuda")
    with pytest.raises(DeviceError, match="cuda: none on this machine"):
        settings_of(device="cuda").check()


def test_bfloat16_without_the_instructions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "native_bfloat16", lambda device: False)
    assert choose_settings(device="cpu").dtype == "float32"
    with pytest.raises(DeviceError, match=r"bfloat16.*no native"):
        choose_settings(device="cpu", dtype="bfloat16")
    with pytest.raises(DeviceError, match="bfloat16: not native"):
        settings_of(dtype="bfloat16").check()


@pytest.mark.parametrize("library", ["torch", "tokenizers", "numpy", "pyarrow", "raybert"])
def test_settings_of_other_versions_are_refused(library: str) -> None:
    settings = settings_of()
    other = dataclasses.replace(settings, versions={**settings.versions, library: "0.0.1"})
    with pytest.raises(DeviceError, match=rf"{library} .* here, 0.0.1 in the run's manifest.*--overwrite"):
        other.check()
