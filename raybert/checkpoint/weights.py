"""The weights of a checkpoint as an index of tensors: found, checked, read one at a time, without torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from raybert.checkpoint.entry import ITEM_BYTES, TensorEntry, read_bytes
from raybert.checkpoint.foreign import FOREIGN_WEIGHTS, converted
from raybert.checkpoint.jsonfile import read_json_object
from raybert.checkpoint.safetensorsfile import read_safetensors_header
from raybert.checkpoint.torchfile import read_torch_header
from raybert.errors import CheckpointError

__all__ = [
    "ITEM_BYTES",
    "WEIGHT_NAMES",
    "TensorEntry",
    "choose_weights",
    "find_weights",
    "index",
    "no_weights",
    "read_bytes",
    "shard_names",
]

WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    *FOREIGN_WEIGHTS,
)
"""The files that weights are looked for in, best first; an index.json names the shards that lie beside it.

Those of other frameworks come last: reading them needs an extra and a converted copy.
"""

_READERS = {".safetensors": read_safetensors_header, ".bin": read_torch_header}
_UNREADABLE_WEIGHTS = (
    "tf_model.h5.index.json",
    "flax_model.msgpack.index.json",
    "model.onnx",
    "onnx/model.onnx",
    "rust_model.ot",
    "openvino_model.xml",
)


def choose_weights(files: Iterable[str]) -> str | None:
    """The best of `WEIGHT_NAMES` among a folder's file names, or None."""
    present = set(files)
    return next((name for name in WEIGHT_NAMES if name in present), None)


def no_weights(place: str, names: Iterable[str]) -> str:
    """The message for a checkpoint whose files `names` hold no weights that raybert reads."""
    others = sorted(set(names) & {*_UNREADABLE_WEIGHTS})
    found = f"; found {', '.join(others)}, which raybert can't read" if others else ""
    return f"{place}: no weights: looked for {', '.join(WEIGHT_NAMES)}{found}"


def find_weights(folder: Path) -> tuple[Path, ...]:
    """The weight files of a checkpoint's folder: one, or the shards that its index names, in order.

    Of a folder with nothing but weights of another framework: their converted copy.

    Raises:
        CheckpointError: there are none, or a shard or a tensor that the index names is missing, or foreign weights
            can't be read.
        OutputError: there is no room for a converted copy.
    """
    chosen = choose_weights(name for name in WEIGHT_NAMES if (folder / name).is_file())
    if chosen is None:
        present = [name for name in _UNREADABLE_WEIGHTS if (folder / name).exists()]
        raise CheckpointError(no_weights(str(folder), present))
    if chosen in FOREIGN_WEIGHTS:
        return (converted(folder, chosen),)
    if not chosen.endswith(".index.json"):
        return (folder / chosen,)
    files = shard_names(folder / chosen)
    paths = tuple(folder / name for name in sorted(set(files.values())))
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise CheckpointError(
            f"{folder / chosen}: names {', '.join(missing)}, missing in the folder; download it again"
        )
    entries = index(paths)
    for name, file in files.items():
        if name not in entries or entries[name].file.name != file:
            raise CheckpointError(f"{folder / chosen}: puts tensor {name!r} into {file}, which lacks it")
    return paths


def shard_names(path: Path) -> dict[str, str]:
    """Tensor name -> shard file name, as an index file says.

    Raises:
        CheckpointError: the file is damaged, or names a file outside its own folder.
    """
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: damaged: it has no weight_map")
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file or Path(file).suffix not in _READERS:
            raise CheckpointError(f"{path}: damaged: {file!r} is no weight file beside it")
    return weight_map


def index(files: Iterable[Path]) -> dict[str, TensorEntry]:
    """Every tensor of the weight files by the name that the file gives it.

    Raises:
        CheckpointError: a file is missing or damaged, or two files hold one name.
    """
    entries: dict[str, TensorEntry] = {}
    for path in files:
        reader = _READERS.get(path.suffix)
        if reader is None:
            raise CheckpointError(f"{path}: unknown kind of weights; known are {', '.join(_READERS)}")
        for name, entry in reader(path).items():
            if name in entries:
                raise CheckpointError(f"{path}: tensor {name!r} lies in {entries[name].file.name} as well")
            entries[name] = entry
    return entries
