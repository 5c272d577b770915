"""Whether two checkpoints compute the same: sha256 over what enters the arithmetic, never over paths or formats.

A trunk has one digest whether its file is sharded or not, .safetensors or .bin, with or without ``bert.``, with
``gamma`` or ``weight``. Each digest begins with a label of its kind, and every piece is preceded by its length, so
that no two different inputs hash the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from raybert.checkpoint.config import BertConfig
from raybert.checkpoint.entry import TensorEntry, stream_bytes
from raybert.checkpoint.folder import Checkpoint
from raybert.checkpoint.names import HEADS, TIED, canonical_names, is_trunk, lacks_heads
from raybert.checkpoint.sentence import Dense
from raybert.checkpoint.weights import find_weights, index
from raybert.errors import CheckpointError

TRUNK_FIELDS = (
    "add_cross_attention",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "is_decoder",
    "layer_norm_eps",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "position_embedding_type",
    "type_vocab_size",
    "vocab_size",
)
"""The fields of a configuration that enter a trunk's arithmetic when it predicts.

Not among them: dropout and initializer_range (training only), chunk_size_feed_forward, use_cache and output_*
(how it is computed and what is handed out), pad_token_id (names a row, changes none).
"""


def trunk_digest(checkpoint: Checkpoint) -> str:
    """sha256 (hex) of the trunk: canonical names, dtypes, shapes and bytes of its tensors, and `TRUNK_FIELDS`.

    Raises:
        CheckpointError: a weight file is damaged.
    """
    entries = {name: entry for name, entry in _canonical_entries(checkpoint).items() if is_trunk(name)}
    return _tensors_digest("trunk", _trunk_settings(checkpoint.config), entries)


def head_digest(checkpoint: Checkpoint, names: Iterable[str]) -> str:
    """sha256 (hex) of the tensors of canonical `names`: what a head adds to its trunk.

    Raises:
        CheckpointError: the checkpoint lacks one of them, or a weight file is damaged.
    """
    present = _canonical_entries(checkpoint)
    wanted = list(names)
    missing = [name for name in wanted if name not in present]
    if missing:
        told = lacks_heads(missing, present) or f"the weights lack {missing[0]!r}"
        raise CheckpointError(f"{checkpoint.path}: {told}; name another checkpoint")
    return _tensors_digest("head", {}, {name: present[name] for name in wanted})


def word_head_digest(checkpoint: Checkpoint) -> str:
    """sha256 (hex) of the masked-word head's tensors, copies of tied ones left out.

    A decoder that equals the word embeddings, or is absent, adds nothing to the trunk; another one counts.

    Raises:
        CheckpointError: the checkpoint lacks the head, or a weight file is damaged.
    """
    present = _canonical_entries(checkpoint)
    names = [name for name in HEADS["masked-lm"] if name not in TIED]
    for copy, source in TIED.items():
        if copy in present and source in present and not _same_numbers(present[copy], present[source]):
            names.append(copy)
        elif copy in present and source in names and source not in present:
            names[names.index(source)] = copy
    return head_digest(checkpoint, names)


def _same_numbers(one: TensorEntry, other: TensorEntry) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(mine == theirs for mine, theirs in zip(stream_bytes(one), stream_bytes(other), strict=True))


def module_digest(dense: Dense) -> str:
    """sha256 (hex) of a Dense module: its settings and its tensors.

    Raises:
        CheckpointError: its weights are missing or damaged.
    """
    settings = {
        "activation": dense.activation,
        "bias": dense.bias,
        "in_features": dense.in_features,
        "out_features": dense.out_features,
    }
    return _tensors_digest("dense", settings, index(find_weights(dense.folder)))


def files_digest(paths: Iterable[Path]) -> str:
    """sha256 (hex) of files by name and contents, in any order: a tokenizer's.

    Raises:
        CheckpointError: a file can't be read.
    """
    digest = hashlib.sha256(b"raybert files\n")
    for path in sorted(paths, key=lambda path: path.name):
        try:
            with path.open("rb") as file:
                contents = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise CheckpointError(f"{path}: can't be read: {error.strerror or error}") from error
        _add(digest, path.name.encode())
        _add(digest, contents)
    return digest.hexdigest()


def _canonical_entries(checkpoint: Checkpoint) -> dict[str, TensorEntry]:
    entries = index(checkpoint.weight_files)
    return {name: entries[original] for name, original in canonical_names(entries).items()}


def _trunk_settings(config: BertConfig) -> dict[str, Any]:
    settings = {name: getattr(config, name) for name in TRUNK_FIELDS}
    # 1e-12 may stand in a file as a number of another type.
    settings["layer_norm_eps"] = float(config.layer_norm_eps)
    return settings


def _tensors_digest(kind: str, settings: Mapping[str, Any], entries: Mapping[str, TensorEntry]) -> str:
    digest = hashlib.sha256(f"raybert {kind}\n".encode())
    _add(digest, json.dumps(settings, sort_keys=True).encode())
    for name in sorted(entries):
        entry = entries[name]
        _add(digest, json.dumps([name, entry.dtype, entry.shape]).encode())
        digest.update(entry.nbytes.to_bytes(8, "little"))
        for piece in stream_bytes(entry):
            digest.update(piece)
    return digest.hexdigest()


def _add(digest: Any, piece: bytes) -> None:
    digest.update(len(piece).to_bytes(8, "little"))
    digest.update(piece)
