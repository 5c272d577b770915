"""Index a ``pytorch_model.bin`` without torch and without running what its pickle says.

`torch.save` writes a pickle that names tensors, beside the raw bytes of their storages: since torch 1.6 as
members of an uncompressed zip archive, before that one after the other in one file. The pickle is first
checked opcode by opcode against the few that a dictionary of tensors needs; then it is unpickled with every
global name mapped to one of the callables below, which only record shapes. A name or opcode outside these
lists is an error.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from raybert.checkpoint.entry import ITEM_BYTES, TensorEntry, c_strides
from raybert.errors import CheckpointError

_ZIP_SIGNATURE = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
# A BERT of 400 tensors has a pickle of some 80 kB; more than this is no list of tensors.
_MAX_PICKLE_BYTES = 16 * 2**20
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
# The opcodes that pickles of torch.save, old and new, are made of.
_OPCODES = """
    PROTO FRAME STOP MARK POP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS
    PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID
    """
_ALLOWED = frozenset(_OPCODES.split())
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
# Whatever the unpickler and the zip reader raise on damaged bytes.
_DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)


class _Storage(NamedTuple):
    """A persistent id of the pickle: a run of numbers of one dtype, kept outside it."""

    key: str
    dtype: str
    length: int


class _Tensor(NamedTuple):
    """What the pickle says of one tensor: a strided view of a storage."""

    storage: _Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Names(dict[Any, Any]):
    """The dictionary of tensors; a class of its own because the pickle hangs version metadata on it."""


class _Call:
    """A callable that hides its function: a pickle can call it, but not reach into it."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        """The pickle's BUILD may not change what a name means."""
        raise pickle.UnpicklingError("the pickle changes a function")


def _tensor(storage: Any, first: Any, shape: Any, strides: Any, *_flags: Any) -> _Tensor:
    """Stands for ``torch._utils._rebuild_tensor`` and ``_v2``; the flags are about gradients."""
    numbers = (first, *shape, *strides)
    sound = isinstance(storage, _Storage) and len(shape) == len(strides)
    if not sound or not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise pickle.UnpicklingError("a tensor without storage, shape or strides")
    return _Tensor(storage, first, tuple(shape), tuple(strides))


def _parameter(tensor: Any, *_flags: Any) -> Any:
    """Stands for ``torch._utils._rebuild_parameter``: a parameter is its tensor."""
    return tensor


_GLOBALS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _Names,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}


class _Unpickler(pickle.Unpickler):
    """Resolves the names of `_GLOBALS` and the storage types, and nothing else; notes the storages."""

    def __init__(self, stream: BinaryIO) -> None:
        # Files from Python 2 hold byte strings where names are meant.
        super().__init__(stream, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _GLOBALS:
            return _Call(_GLOBALS[module, name])
        if module in {"torch", "torch.storage"} and name in _STORAGES:
            return _STORAGES[name]
        wanted = f"{module}.{name}"
        raise CheckpointError(f"the pickle asks for {wanted!r}, which no dictionary of tensors needs")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, count, *view = pid
        if kind != "storage" or dtype not in ITEM_BYTES or any(part is not None for part in view):
            raise pickle.UnpicklingError(f"an unknown kind of storage: {pid!r}")
        if not isinstance(key, str) or not isinstance(count, int) or count < 0:
            raise pickle.UnpicklingError(f"a storage without key or length: {pid!r}")
        self.storages[key] = _Storage(key, dtype, count)
        return self.storages[key]


def read_torch_header(path: Path) -> dict[str, TensorEntry]:
    """Index the tensors of one file written by `torch.save`, in the order of the dictionary.

    Raises:
        CheckpointError: the file is missing, truncated or damaged, is no dictionary of tensors, or its pickle
            asks for anything beyond that.
    """
    try:
        with path.open("rb") as file:
            signature = file.read(len(_ZIP_SIGNATURE))
            file.seek(0)
            if signature == _ZIP_SIGNATURE:
                names, offsets = _read_zip(file)
            else:
                names, offsets = _read_legacy(file, path.stat().st_size)
            return _entries(path, names, offsets)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror or error}") from error
    except _DAMAGE as error:
        raise CheckpointError(
            f"{path}: truncated or damaged: {error or type(error).__name__}; download or copy it again"
        ) from error


_Places = dict[str, tuple[int, int]]  # storage key -> offset in the file, bytes


def _read_zip(file: BinaryIO) -> tuple[Any, _Places]:
    """The unpickled dictionary and the place of each storage, of the zip format."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
    roots = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1 or f"{roots[0]}/constants.pkl" in members:
        raise CheckpointError("this zip archive is no dictionary of tensors; save one with torch.save")
    root = roots[0]
    order = members.get(f"{root}/byteorder")
    if order is not None and _member_bytes(file, order) != b"little":
        raise CheckpointError("the numbers are not little-endian; save it again on a little-endian machine")
    names, _, _ = _unpickle(_member_bytes(file, members[f"{root}/data.pkl"]), 0)
    prefix = f"{root}/data/"
    return names, {
        name.removeprefix(prefix): (_member_offset(file, info), info.file_size)
        for name, info in members.items()
        if name.startswith(prefix)
    }


def _member_offset(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: after its local header, whose length only the local header tells."""
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
        raise CheckpointError(f"member {info.filename!r} is compressed or encrypted; torch.save writes neither")
    file.seek(info.header_offset)
    signature, name_bytes, extra_bytes = struct.unpack("<4s22xHH", file.read(30))
    if signature != _ZIP_SIGNATURE:
        raise zipfile.BadZipFile(f"member {info.filename!r} has no header")
    offset = info.header_offset + 30 + int(name_bytes) + int(extra_bytes)
    if offset + info.file_size > file.seek(0, io.SEEK_END):
        raise EOFError(f"member {info.filename!r} ends at byte {offset + info.file_size}")
    return offset


def _member_bytes(file: BinaryIO, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > _MAX_PICKLE_BYTES:
        raise CheckpointError(f"a pickle of {info.file_size} bytes exceeds {_MAX_PICKLE_BYTES}")
    file.seek(_member_offset(file, info))
    return file.read(info.file_size)


def _read_legacy(file: BinaryIO, file_bytes: int) -> tuple[Any, _Places]:
    """The unpickled dictionary and the place of each storage, of the format before torch 1.6.

    Five pickles follow one another: magic number, protocol, machine, dictionary, storage keys. Then for each
    key the count of numbers (8 bytes) and the numbers.
    """
    head = file.read(_MAX_PICKLE_BYTES)
    try:
        magic, position, _ = _unpickle(head, 0)
    except (*_DAMAGE, CheckpointError):
        magic = None
    if magic != _LEGACY_MAGIC:
        raise CheckpointError("not written by torch.save; expected a zip archive or torch's older format")
    protocol, position, _ = _unpickle(head, position)
    machine, position, _ = _unpickle(head, position)
    if protocol != _LEGACY_PROTOCOL or not machine["little_endian"]:
        raise CheckpointError(f"protocol {protocol} or byte order is unknown; save it again with torch.save")
    names, position, storages = _unpickle(head, position)
    keys, position, _ = _unpickle(head, position)
    offsets: _Places = {}
    for key in keys:
        file.seek(position)
        (count,) = struct.unpack("<q", file.read(8))
        nbytes = count * ITEM_BYTES[storages[key].dtype]
        if count != storages[key].length or position + 8 + nbytes > file_bytes:
            raise EOFError(f"storage {key} of {nbytes} bytes at {position} exceeds the file's {file_bytes}")
        offsets[key] = (position + 8, nbytes)
        position += 8 + nbytes
    return names, offsets


def _unpickle(pickled: bytes, begin: int) -> tuple[Any, int, dict[str, _Storage]]:
    """Check and load the pickle at `begin`; returns its value, where it ends, and the storages it names."""
    stream = io.BytesIO(pickled)
    stream.seek(begin)
    for opcode, argument, position in pickletools.genops(stream):
        if opcode.name not in _ALLOWED:
            raise CheckpointError(f"the pickle uses {opcode.name}, which no dictionary of tensors needs")
        # The unpickler makes room for every number up to this one.
        if opcode.name in _PUTS and int(argument or 0) > len(pickled):
            raise pickle.UnpicklingError(f"memo {argument} at byte {position}")
    end = stream.tell()
    stream.seek(begin)
    unpickler = _Unpickler(stream)
    return unpickler.load(), end, unpickler.storages


def _entries(path: Path, names: Any, offsets: _Places) -> dict[str, TensorEntry]:
    if not isinstance(names, dict):
        raise CheckpointError(f"holds {_kind(names)}, not a dictionary of tensors; save the state dict")
    entries: dict[str, TensorEntry] = {}
    for name, tensor in names.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise CheckpointError(f"{name!r} holds {_kind(tensor)}, not a tensor; save the state dict by itself")
        entries[name] = _entry(path, name, tensor, offsets)
    return entries


def _kind(value: Any) -> str:
    """What the pickle held, in the words of who saved it."""
    if isinstance(value, _Tensor):
        return "one tensor"
    return "a dict" if isinstance(value, dict) else f"a {type(value).__name__}"


def _entry(path: Path, name: str, tensor: _Tensor, offsets: _Places) -> TensorEntry:
    storage_offset, storage_bytes = offsets[tensor.storage.key]
    item_bytes = ITEM_BYTES[tensor.storage.dtype]
    count = math.prod(tensor.shape)
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    last = tensor.first + reach
    if count and (last + 1) * item_bytes > storage_bytes:
        raise EOFError(f"tensor {name!r} reaches to byte {(last + 1) * item_bytes} of a storage of {storage_bytes}")
    wanted = c_strides(tensor.shape)
    # A dimension of one number is in order whatever its stride.
    ordered = all(
        size == 1 or stride == plain for size, stride, plain in zip(tensor.shape, tensor.strides, wanted, strict=True)
    )
    return TensorEntry(
        name=name,
        dtype=tensor.storage.dtype,
        shape=tensor.shape,
        file=path,
        offset=storage_offset + tensor.first * item_bytes,
        nbytes=count * item_bytes,
        strides=None if ordered or not count else tensor.strides,
    )
