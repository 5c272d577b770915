"""Damaged and hostile ``pytorch_model.bin`` files: always one clear error, and nothing of theirs runs."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raybert.checkpoint.weights import index, read_bytes
from raybert.errors import CheckpointError
from tests.test_checkpoint_weights import rewrite


def small_torch_file(path: Path, *, zipped: bool) -> bytes:
    tensors = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(3).half()}
    torch.save(OrderedDict(tensors), path, _use_new_zipfile_serialization=zipped)
    return path.read_bytes()


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_torch_files_at_every_byte(tmp_path: Path, *, zipped: bool) -> None:
    path = tmp_path / "pytorch_model.bin"
    content = small_torch_file(path, zipped=zipped)
    for length in range(len(content)):
        rewrite(path, content[:length])
        with pytest.raises(CheckpointError):
            index([path])


@pytest.mark.parametrize("zipped", [True, False])
def test_changed_bytes_of_torch_files_are_an_error_or_an_index(tmp_path: Path, *, zipped: bool) -> None:
    path = tmp_path / "pytorch_model.bin"
    content = small_torch_file(path, zipped=zipped)
    rng = random.Random(1)
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= rng.randrange(1, 256)
        rewrite(path, bytes(changed))
        try:
            for entry in index([path]).values():
                read_bytes(entry)
        except CheckpointError as error:
            assert "\n" not in str(error)  # noqa: PT017  either outcome is right here


# -- pickles that want more than tensors ---------------------------------------------------------------------------


class Runs:
    """Pickles to a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_of_a_pickle_runs(tmp_path: Path, *, zipped: bool) -> None:
    path, witness = tmp_path / "pytorch_model.bin", tmp_path / "witness"
    attack = Runs(os.mkdir, str(witness))
    torch.save({"a": torch.ones(2), "b": attack}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"the pickle asks for 'posix\.mkdir'"):
        index([path])
    assert not witness.exists()


def zip_with(path: Path, pickled: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", bytes(24))
    return path


MARK_DICT = b"\x80\x02ccollections\nOrderedDict\n)R"


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", "asks for 'builtins.eval'"),
        (b"\x80\x02ctorch\nload\n.", "asks for 'torch.load'"),
        (b"\x80\x02c__main__\nx\n.", "asks for '__main__.x'"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor\n}b.", "the pickle changes a function"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor\n)\x81.", "the pickle uses NEWOBJ"),
        (b"\x80\x02ctorch\nSize\nctorch\nSize\nR.", "damaged: argument list must be a tuple"),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "memo 2147483647"),
        (b"\x80\x02]q\x00h\x00a.", "holds a list"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x03s.", "'a' holds a int"),
        (MARK_DICT + b"K\x01K\x02s.", "1 holds a int"),
        (b"\x80\x02K\x05Q.", "int"),
        (
            b"\x80\x02(X\x07\x00\x00\x00storageX\x01\x00\x00\x00qX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ.",
            "unknown kind",
        ),
        (b"\x80\x02X\x02\x00\x00\x00a\nX\x01\x00\x00\x00b\x93.", r"asks for 'a\\n\.b'"),
        (b"", "exhausted"),
        (b".", "."),
    ],
)
def test_hostile_pickles(pickled: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        index([zip_with(tmp_path / "pytorch_model.bin", pickled)])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"model": {"a": torch.ones(1)}, "epoch": 3},
            "'model' holds a dict, not a tensor; save the state dict by itself",
        ),
        (torch.ones(2), "holds one tensor, not a dictionary of tensors"),
        (torch.nn.Linear(2, 2), "the pickle uses NEWOBJ"),
        ({"a": torch.ones(2).to_sparse()}, "asks for 'torch._utils._rebuild_sparse_tensor'"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "asks for 'torch.ComplexFloatStorage'"),
    ],
)
def test_torch_files_that_hold_more_than_tensors(value: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    for zipped in (True, False):
        torch.save(value, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=message):
            index([path])


def test_archives_that_torch_save_never_writes(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    good = small_torch_file(tmp_path / "good.bin", zipped=True)
    with zipfile.ZipFile(tmp_path / "good.bin") as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match="compressed or encrypted"):
        index([path])
    with zipfile.ZipFile(path, "w") as script:
        script.writestr("model/data.pkl", b"N.")
        script.writestr("model/constants.pkl", b"N.")
    with pytest.raises(CheckpointError, match="no dictionary of tensors"):
        index([path])
    path.write_bytes(good.replace(b"little", b"big...", 1))
    with pytest.raises(CheckpointError, match="not little-endian"):
        index([path])
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match=r"not written by torch\.save"):
        index([path])
