"""``raybert info``: a checkpoint described from its headers."""

from __future__ import annotations

import math
from typing import Any

from raybert.checkpoint.digest import trunk_digest
from raybert.checkpoint.folder import Checkpoint, open_checkpoint
from raybert.checkpoint.names import canonical_names, head_of, is_buffer, is_pooler
from raybert.checkpoint.sentence import Dense, Normalize
from raybert.checkpoint.weights import index
from raybert.errors import CheckpointError
from raybert.tasks.embed import Embed


def describe(model: str, revision: str | None = None) -> dict[str, Any]:
    """Facts about a checkpoint, by name.

    Raises:
        CheckpointError: it can't be found, read or honoured.
    """
    checkpoint = open_checkpoint(model, revision=revision)
    config = checkpoint.config
    entries = index(checkpoint.weight_files)
    names = canonical_names(entries)
    heads = sorted({head for name in names if (head := head_of(name))})
    if any(is_pooler(name) for name in names):
        heads.append("pooler")
    numbers = [entries[original] for name, original in names.items() if not is_buffer(name)]
    facts: dict[str, Any] = {
        "model": checkpoint.name,
        "path": str(checkpoint.path),
        "architecture": f"bert, {config.num_hidden_layers} layers, width {config.hidden_size}, "
        f"{config.num_attention_heads} heads, feed-forward {config.intermediate_size}, {config.hidden_act}",
        "vocabulary": config.vocab_size,
        "max_length": checkpoint.max_length,
        "heads": heads,
        "parameters": sum(math.prod(entry.shape) for entry in numbers),
        "bytes": sum(entry.nbytes for entry in numbers),
        "dtypes": sorted({entry.dtype for entry in numbers}),
        "weights": [path.name for path in checkpoint.weight_files],
        "trunk": trunk_digest(checkpoint),
    }
    if "classifier" in heads:
        facts["labels"] = [label for _, label in sorted(config.id2label.items())]
    try:
        return {**facts, **_embeddings(checkpoint)}
    except CheckpointError as error:  # other heads answer all the same
        return {**facts, "embeddings": f"none: {error}"}


def _embeddings(checkpoint: Checkpoint) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    sentence = checkpoint.sentence
    if sentence is not None:
        pooling = f"Pooling {'+'.join(sentence.pooling.modes)}"
        if sentence.splade is not None:
            pooling = f"SpladePooling {sentence.splade.strategy}"
        facts["embeddings"] = [pooling, *map(_module, sentence.after)]
        facts["prompts"] = sorted(sentence.prompts)
    embed = Embed.open(checkpoint, {})
    facts["embed_dimensions"] = embed.width if isinstance(embed, Embed) else checkpoint.config.vocab_size
    facts["fingerprint"] = {dtype: embed.fingerprint(dtype) for dtype in ("float32", "bfloat16")}
    return facts


def _module(entry: Dense | Normalize) -> str:
    if isinstance(entry, Dense):
        return f"Dense {entry.in_features}->{entry.out_features} {entry.activation}"
    return "Normalize"
