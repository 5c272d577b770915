"""Weight files as an index of tensors: both formats against their own libraries, damage in every place."""

from __future__ import annotations

import json
import os
import random
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from raybert.checkpoint.entry import stream_bytes
from raybert.checkpoint.weights import TensorEntry, choose_weights, find_weights, index, read_bytes
from raybert.errors import CheckpointError
from tests.tiny import tiny_config, tiny_tensors, write_json, write_safetensors


def some_tensors() -> dict[str, torch.Tensor]:
    """Every dtype, and shapes from none to empty."""
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(6, 8, generator=generator),
        "half": torch.randn(3, generator=generator).half(),
        "brain": torch.randn(4, 2, generator=generator).bfloat16(),
        "double": torch.randn(2, 2, 2, generator=generator).double(),
        "long": torch.arange(-3, 4),
        "int": torch.arange(3, dtype=torch.int32),
        "short": torch.arange(3, dtype=torch.int16),
        "char": torch.arange(-1, 2, dtype=torch.int8),
        "byte": torch.arange(3, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
    }


def some_views() -> dict[str, torch.Tensor]:
    """Tensors that don't lie in C order, or share their storage."""
    base = torch.arange(48.0).view(6, 8)
    return {
        "whole": base,
        "turned": base.t(),
        "corner": base[1:4, 2:7],
        "row": base[2],
        "column": base[:, 3],
        "steps": base[::2, ::3],
        "repeated": torch.randn(1, 3).expand(5, 3),
        "one wide": base[:, 3:4],
        "thin": torch.randn(4, 1).t(),
    }


def numbers_of(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().flatten().view(torch.uint8).numpy()) if tensor.numel() else b""


def assert_holds(entries: dict[str, TensorEntry], tensors: dict[str, torch.Tensor]) -> None:
    assert set(entries) == set(tensors)
    for name, tensor in tensors.items():
        entry = entries[name]
        assert (entry.name, entry.shape) == (name, tuple(tensor.shape))
        assert f"torch.{entry.dtype}" == str(tensor.dtype)
        assert entry.nbytes == len(numbers_of(tensor))
        assert bytes(read_bytes(entry)) == numbers_of(tensor), name
        assert b"".join(stream_bytes(entry, 7)) == numbers_of(tensor), name


def test_safetensors_as_its_library_writes_them(tmp_path: Path) -> None:
    safetensors.torch.save_file(some_tensors(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_holds(index([tmp_path / "model.safetensors"]), some_tensors())


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_new_and_old(tmp_path: Path, *, zipped: bool) -> None:
    tensors = some_tensors() | some_views()
    torch.save(OrderedDict(tensors), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert_holds(index([tmp_path / "pytorch_model.bin"]), tensors)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    parameters = dict(module.named_parameters())
    torch.save(module.state_dict(), tmp_path / "b.bin", _use_new_zipfile_serialization=zipped)
    torch.save(parameters, tmp_path / "c.bin", _use_new_zipfile_serialization=zipped)
    for path in (tmp_path / "b.bin", tmp_path / "c.bin"):
        assert_holds(index([path]), {name: value.detach() for name, value in parameters.items()})


def test_reading_maps_and_does_not_load(tmp_path: Path) -> None:
    tensors = tiny_tensors(tiny_config())
    write_safetensors(tmp_path, tensors)
    entries = index(find_weights(tmp_path))
    view = read_bytes(entries["bert.embeddings.word_embeddings.weight"])
    assert view.readonly
    got = np.frombuffer(view, np.float32).reshape(entries["bert.embeddings.word_embeddings.weight"].shape)
    np.testing.assert_array_equal(got, tensors["bert.embeddings.word_embeddings.weight"])


def test_a_file_that_shrinks_or_goes_after_indexing(tmp_path: Path) -> None:
    write_safetensors(tmp_path, tiny_tensors(tiny_config()))
    path = tmp_path / "model.safetensors"
    last = list(index([path]).values())[-1]
    os.truncate(path, last.offset)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor .* can't be read"):
        read_bytes(last)
    path.unlink()
    with pytest.raises(CheckpointError, match="can't be read"):
        read_bytes(last)
    with pytest.raises(CheckpointError, match="can't be read"):
        index([path])


# -- damage ------------------------------------------------------------------------------------------------------


def rewrite(path: Path, content: bytes) -> None:
    """Write anew: some file systems flush a file to disk when it is truncated and written again."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def small_safetensors() -> bytes:
    return safetensors.numpy.save({"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 3), np.float16)})


def header_file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def one(**change: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **change}}


BAD_SAFETENSORS: list[tuple[bytes, str]] = [
    (b"", "0 bytes are too few"),
    (b"1234567", "7 bytes are too few"),
    (struct.pack("<Q", 2**63), "a header of 9223372036854775808 bytes exceeds the format's 100000000"),
    (struct.pack("<Q", 100) + b"{}", "truncated: the header ends at byte 108, the file at 10"),
    (header_file(b"[]"), "the header is a JSON list"),
    (header_file(b"{]"), "no valid JSON"),
    (header_file(b"\xff"), "no valid JSON"),
    (header_file(b"[" * 100_000), "no valid JSON"),
    (header_file(b'{"a":1,"a":2}'), "a name occurs twice"),
    (header_file({"a": 3}), "tensor 'a' lacks dtype, shape or data_offsets"),
    (header_file(one(dtype="Q4")), "tensor 'a' has the dtype 'Q4'"),
    (header_file(one(dtype=["F32"])), "has the dtype"),
    (header_file(one(shape=[-2])), r"shape \[-2\]"),
    (header_file(one(shape=[2.0])), r"shape \[2.0\]"),
    (header_file(one(shape="2")), "shape '2'"),
    (header_file(one(data_offsets=[0])), r"data_offsets \[0\]"),
    (header_file(one(data_offsets=[8, 0])), "takes 8 bytes, its data_offsets say -8"),
    (header_file(one(data_offsets=[0, 9]), bytes(9)), "takes 8 bytes, its data_offsets say 9"),
    (header_file(one(), bytes(7)), "truncated: the tensors end at byte 77, the file at 76"),
    (header_file(one(), bytes(9)), "the tensors end at byte 77, the file goes on to 78"),
    (header_file(one(data_offsets=[1, 9]), bytes(9)), "begins at byte 70, the one before it ends at 69"),
    (header_file({**one(), "b": one()["a"]}, bytes(8)), "'b' begins at byte"),
]


@pytest.mark.parametrize(("content", "message"), BAD_SAFETENSORS)
def test_damaged_safetensors_say_what_and_where(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        index([path])
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(safetensors.SafetensorError):
        safetensors.numpy.load(content)


def test_truncated_safetensors_at_every_byte(tmp_path: Path) -> None:
    content = small_safetensors()
    path = tmp_path / "model.safetensors"
    for length in range(len(content)):
        rewrite(path, content[:length])
        with pytest.raises(CheckpointError):
            index([path])


def check_like_the_library(path: Path, content: bytes) -> None:
    """What we accept the library accepts too, with the same tensors."""
    rewrite(path, content)
    try:
        entries = index([path])
    except CheckpointError as error:
        assert "\n" not in str(error)  # noqa: PT017  either outcome is right here
        return
    theirs = dict(safetensors.deserialize(content))
    assert {name: bytes(read_bytes(entry)) for name, entry in entries.items()} == {
        name: bytes(tensor["data"]) for name, tensor in theirs.items()
    }


def test_every_single_changed_byte_of_a_safetensors_file(tmp_path: Path) -> None:
    content = small_safetensors()
    rng = random.Random(0)
    for position in range(len(content)):
        for value in {0, 255, content[position] ^ 1, rng.randrange(256), ord("9"), ord('"'), ord("]")}:
            changed = bytearray(content)
            changed[position] = value
            check_like_the_library(tmp_path / "model.safetensors", bytes(changed))


# -- which files ---------------------------------------------------------------------------------------------------


def test_shards_are_found_and_checked(tmp_path: Path) -> None:
    tensors = tiny_tensors(tiny_config())
    write_safetensors(tmp_path, tensors, shards=3)
    files = find_weights(tmp_path)
    assert [path.name for path in files] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert set(index(files)) == set(tensors)

    place = tmp_path / "model.safetensors.index.json"
    stored = json.loads(place.read_text())
    for change, message in [
        ({}, "has no weight_map"),
        ({"weight_map": {"a": "../model.safetensors"}}, r"'\.\./model\.safetensors' is no weight file beside it"),
        ({"weight_map": {"a": "config.json"}}, "'config.json' is no weight file"),
        ({"weight_map": {"a": 3}}, "3 is no weight file"),
        ({"weight_map": {**stored["weight_map"], "zz": files[0].name}}, "puts tensor 'zz' into model-00001"),
    ]:
        write_json(place, change)
        with pytest.raises(CheckpointError, match=message):
            find_weights(tmp_path)
    write_json(place, stored)
    files[1].rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"names model-00002-of-00003\.safetensors, missing in the folder"):
        find_weights(tmp_path)


def test_sharded_torch_files(tmp_path: Path) -> None:
    parts = {"pytorch_model-1.bin": {"a": torch.ones(2)}, "pytorch_model-2.bin": {"b": torch.zeros(3)}}
    for file, tensors in parts.items():
        torch.save(tensors, tmp_path / file)
    weight_map = {name: file for file, tensors in parts.items() for name in tensors}
    write_json(tmp_path / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": weight_map})
    assert_holds(index(find_weights(tmp_path)), {"a": torch.ones(2), "b": torch.zeros(3)})


def test_one_name_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("x.safetensors", "y.safetensors"):
        safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"tensor 'a' lies in x\.safetensors as well"):
        index([tmp_path / "x.safetensors", tmp_path / "y.safetensors"])
    with pytest.raises(CheckpointError, match="unknown kind of weights"):
        index([tmp_path / "x.h5"])


def test_the_best_kind_is_chosen_and_unreadable_kinds_are_named(tmp_path: Path) -> None:
    assert choose_weights(["pytorch_model.bin", "model.safetensors.index.json"]) == "model.safetensors.index.json"
    assert choose_weights(["pytorch_model.bin", "model.safetensors"]) == "model.safetensors"
    assert choose_weights(["rust_model.ot"]) is None
    with pytest.raises(CheckpointError, match=r"no weights: looked for model\.safetensors, .*ckpt\.index$"):
        find_weights(tmp_path)
    (tmp_path / "rust_model.ot").touch()
    with pytest.raises(CheckpointError, match=r"found rust_model\.ot, which raybert can't read$"):
        find_weights(tmp_path)
