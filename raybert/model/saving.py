"""Write a module as a checkpoint that raybert and the reference load: config.json and model.safetensors."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from raybert.checkpoint.config import BertConfig
from raybert.errors import OutputError

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


def save_module(module: nn.Module, config: BertConfig, folder: Path | str) -> None:
    """Write a module's weights and config into ``folder``, made if it is missing.

    Each file appears whole or not at all, replacing one of its name. The names are the module's own, which are
    the reference's.

    Raises:
        OutputError: the folder can't be made or written.
    """
    folder = Path(folder)
    tensors = _own_tensors(module)
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    saved = config.replace(architectures=[type(module).__name__], dtype=dtypes.pop() if len(dtypes) == 1 else None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The metadata is how the reference recognises torch's layout.
        _write_whole(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
        text = saved.to_json_string()
        _write_whole(folder / CONFIG_FILE, lambda path: _write_text(path, text))
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{folder}: can't save the model: {error}") from error


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state dict as contiguous tensors on the CPU, none sharing memory: the format has no sharing."""
    tensors: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, parameter in module.state_dict().items():
        tensor = parameter.detach().cpu().contiguous()
        tensors[name] = tensor.clone() if tensor.data_ptr() in addresses else tensor
        addresses.add(tensor.data_ptr())
    return tensors


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Have a file written beside its place, flushed to the disk, then moved there in one step."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write(beside)
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
