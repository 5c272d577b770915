"""What the tensors of a BERT checkpoint are called: pure tables over strings, no tensors.

Every file's names are first brought into one namespace, that of the reference's headed classes: the trunk
and pooler below ``bert.``, each head beside it. Then every name is one of: trunk, pooler, a known buffer, a
part of a known head, or unknown (which loading reports as an error).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from raybert.checkpoint.config import BertConfig
from raybert.errors import CheckpointError

PREFIX = "bert."
_PARALLEL_PREFIX = "module."
_BARE_ROOTS = ("embeddings.", "encoder.", "pooler.")
_TRUNK_ROOTS = (PREFIX + "embeddings.", PREFIX + "encoder.")
_OLD_SUFFIXES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

BUFFERS = frozenset({"bert.embeddings.position_ids", "bert.embeddings.token_type_ids"})
"""Tensors that old versions of the reference saved but that hold no learned number: 0..n-1, and zeros."""

POOLER = ("bert.pooler.dense.weight", "bert.pooler.dense.bias")

HEADS: dict[str, tuple[str, ...]] = {
    "masked-lm": (
        "cls.predictions.bias",
        "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.dense.bias",
        "cls.predictions.transform.LayerNorm.weight",
        "cls.predictions.transform.LayerNorm.bias",
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
    ),
    "next-sentence": ("cls.seq_relationship.weight", "cls.seq_relationship.bias"),
    "classifier": ("classifier.weight", "classifier.bias"),
    "qa": ("qa_outputs.weight", "qa_outputs.bias"),
}
"""Head family -> its parameters; "classifier" is shared by sequence, token and multiple-choice heads."""

TIED: dict[str, str] = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
"""Copies that a file may lack -> the tensor they are tied to when ``tie_word_embeddings`` is set."""

_HEAD_OF = {name: family for family, names in HEADS.items() for name in names}


def canonical(name: str) -> str:
    """One name of a file in the headed namespace; a canonical name, and an unknown one, stays as it is.

    ``encoder.layer.0.output.LayerNorm.gamma`` becomes ``bert.encoder.layer.0.output.LayerNorm.weight``.
    """
    for old, new in _OLD_SUFFIXES.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return PREFIX + name if name.startswith(_BARE_ROOTS) else name


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """Canonical name -> the file's name, for all names of a checkpoint, in the file's order.

    The ``module.`` that DataParallel puts before every name is dropped when every name has it.

    Raises:
        CheckpointError: two names of the file mean the same tensor.
    """
    originals = list(names)
    parallel = bool(originals) and all(name.startswith(_PARALLEL_PREFIX) for name in originals)
    found: dict[str, str] = {}
    for original in originals:
        name = canonical(original.removeprefix(_PARALLEL_PREFIX) if parallel else original)
        if name in found:
            raise CheckpointError(
                f"weights: {found[name]!r} and {original!r} both mean {name!r}; keep one of them in the file"
            )
        found[name] = original
    return found


def bare(name: str) -> str:
    """A canonical name as the file of a lone `BertModel` has it: without ``bert.``; `canonical` undoes it."""
    return name.removeprefix(PREFIX)


def is_buffer(name: str) -> bool:
    """Whether the canonical name is a known buffer, which loading may skip."""
    return name in BUFFERS


def is_trunk(name: str) -> bool:
    """Whether the canonical name lies in the embeddings or the encoder layers, buffers excepted."""
    return name.startswith(_TRUNK_ROOTS) and name not in BUFFERS


def is_pooler(name: str) -> bool:
    """Whether the canonical name is one of the pooler's two tensors."""
    return name in POOLER


def head_of(name: str) -> str | None:
    """The head family (a key of `HEADS`) that the canonical name belongs to, or None."""
    return _HEAD_OF.get(name)


def families_of(names: Collection[str]) -> list[str]:
    """The head families that canonical names hold a part of, and "pooler" if they hold its."""
    heads = [family for family, own in HEADS.items() if any(name in names for name in own)]
    return heads + ["pooler"] * any(name in names for name in POOLER)


def lacks_heads(missing: Iterable[str], names: Collection[str]) -> str | None:
    """What to tell of a checkpoint with these canonical names that lacks whole heads or the pooler.

    Args:
        missing: what is wanted and not there.
        names: what is there.

    Returns:
        Which heads it lacks and which it has; None where trunk weights are missing too, or parts of heads.
    """
    wanted = {head_of(name) or ("pooler" if is_pooler(name) else "trunk") for name in missing}
    present = families_of(names)
    if not wanted or "trunk" in wanted or wanted & set(present):
        return None
    return f"has no {' and no '.join(sorted(wanted))} among its weights; heads it has: {', '.join(present) or 'none'}"


def trunk_names(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter that a trunk of this configuration has, with its shape, in the reference's order."""
    width = config.hidden_size
    names: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (config.vocab_size, width),
        "bert.embeddings.position_embeddings.weight": (config.max_position_embeddings, width),
        "bert.embeddings.token_type_embeddings.weight": (config.type_vocab_size, width),
        **_layer_norm("bert.embeddings.LayerNorm", width),
    }
    for number in range(config.num_hidden_layers):
        names |= _layer(f"bert.encoder.layer.{number}", config)
    return names


def pooler_names(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """The pooler's parameters with their shapes."""
    return _linear("bert.pooler.dense", config.hidden_size, config.hidden_size)


def _layer(place: str, config: BertConfig) -> dict[str, tuple[int, ...]]:
    width, inner = config.hidden_size, config.intermediate_size
    relative = config.position_embedding_type != "absolute"
    names = _attention(f"{place}.attention", config, relative=relative)
    if config.add_cross_attention:
        # The reference gives relative positions to self-attention only.
        names |= _attention(f"{place}.crossattention", config, relative=False)
    names |= _linear(f"{place}.intermediate.dense", inner, width)
    names |= _linear(f"{place}.output.dense", width, inner)
    return names | _layer_norm(f"{place}.output.LayerNorm", width)


def _attention(place: str, config: BertConfig, *, relative: bool) -> dict[str, tuple[int, ...]]:
    width = config.hidden_size
    names: dict[str, tuple[int, ...]] = {}
    for part in ("query", "key", "value"):
        names |= _linear(f"{place}.self.{part}", width, width)
    if relative:
        distances = 2 * config.max_position_embeddings - 1
        names[f"{place}.self.distance_embedding.weight"] = (distances, width // config.num_attention_heads)
    names |= _linear(f"{place}.output.dense", width, width)
    return names | _layer_norm(f"{place}.output.LayerNorm", width)


def _linear(place: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{place}.weight": (rows, columns), f"{place}.bias": (rows,)}


def _layer_norm(place: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{place}.weight": (width,), f"{place}.bias": (width,)}
