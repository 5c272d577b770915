"""Open a checkpoint: everything that its files say, read and checked, before a single number is loaded.

Weights of another framework are the exception: opening converts them, once (`raybert.checkpoint.foreign`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raybert.checkpoint.config import BertConfig
from raybert.checkpoint.hub import CONFIG_FILES, DEMO, TOKENIZER_FILES, resolve
from raybert.checkpoint.jsonfile import read_json_object
from raybert.checkpoint.rules import is_int
from raybert.checkpoint.sentence import (
    SentenceModules,
    TransformerSettings,
    read_modules,
    read_sentence_modules,
    read_transformer_settings,
    transformer_path,
)
from raybert.checkpoint.weights import find_weights
from raybert.errors import CheckpointError

# A tokenizer_config.json without a limit of its own holds 10**30 for "no limit".
_SANE_LENGTH = 10**6


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One opened checkpoint. Its numbers are still on disk; `raybert.checkpoint.weights.index` finds them.

    Attributes:
        path: the folder that holds configuration, tokenizer and weights.
        name: last part of the path or hub id, or "demo".
        config: its config.json, or bert_config.json in a folder as Google released it.
        transformer: its sentence_bert_config.json; all defaults without one. It holds for every task.
        modules: the sentence-transformers modules; None for a plain BERT folder; the error that they gave when
            raybert can't honour them. Read them through `sentence`.
        weight_files: the one weight file, or all shards; of foreign weights the converted copy.
        tokenizer_files: those of tokenizer.json, vocab.txt, tokenizer_config.json, special_tokens_map.json and
            added_tokens.json that it has, in this order; a model saved without its tokenizer has none.
        max_length: tokens that a text may have, special tokens included: the smallest of max_seq_length,
            the tokenizer's model_max_length and the number of position embeddings.
    """

    path: Path
    name: str
    config: BertConfig
    transformer: TransformerSettings
    modules: SentenceModules | CheckpointError | None
    weight_files: tuple[Path, ...]
    tokenizer_files: tuple[Path, ...]
    max_length: int

    @property
    def sentence(self) -> SentenceModules | None:
        """How token vectors become a text's vector; None for a plain BERT folder.

        Raises:
            CheckpointError: a module can't be honoured. Only tasks that need the modules meet it: a masked-word
                or ranking head answers the same whatever stands beside it.
        """
        if isinstance(self.modules, CheckpointError):
            raise self.modules
        return self.modules


def open_checkpoint(
    model: str | Path, *, revision: str | None = None, token: str | None = None, cache_dir: str | None = None
) -> Checkpoint:
    """Open a folder, a hub id or "demo"; a hub id is fetched if it is not in the cache.

    Args:
        model: see `raybert.checkpoint.hub.resolve`.
        revision: branch, tag or commit of a hub id.
        token: access token for the hub.
        cache_dir: where hub files are kept; None is the hub's own cache.

    Raises:
        CheckpointError: no such checkpoint, no config.json, no weights, or something damaged.
        OutputError: there is no room for the converted copy of foreign weights.
    """
    root = resolve(str(model), revision=revision, token=token, cache_dir=cache_dir)
    folder = root / transformer_path(read_modules(root))
    place = next((folder / name for name in CONFIG_FILES if (folder / name).is_file()), None)
    if place is None:
        raise CheckpointError(f"{folder}: no config.json; this is no checkpoint in Hugging Face's or Google's layout")
    config = BertConfig.from_json_file(place)
    modules: SentenceModules | CheckpointError | None
    try:
        modules = read_sentence_modules(root, config.hidden_size)
    except CheckpointError as error:
        modules = error
    transformer = read_transformer_settings(folder)
    return Checkpoint(
        path=folder,
        name=_name(str(model)),
        config=config,
        transformer=transformer,
        modules=modules,
        weight_files=find_weights(folder),
        tokenizer_files=tuple(folder / name for name in TOKENIZER_FILES if (folder / name).is_file()),
        max_length=_max_length(folder, config, transformer),
    )


def _name(model: str) -> str:
    folder = Path(model).expanduser()
    return folder.resolve().name if model != DEMO and folder.is_dir() else model.rpartition("/")[2]


def _max_length(folder: Path, config: BertConfig, transformer: TransformerSettings) -> int:
    limits = [config.max_position_embeddings]
    if transformer.max_seq_length is not None:
        limits.append(transformer.max_seq_length)
    place = folder / "tokenizer_config.json"
    stated = read_json_object(place).get("model_max_length") if place.is_file() else None
    if isinstance(stated, float) and stated.is_integer():
        stated = int(stated)
    if stated is not None and not (is_int(stated) and stated >= 1):
        raise CheckpointError(f"{place}: model_max_length {stated!r} is not a whole number of at least 1")
    if stated is not None and stated < _SANE_LENGTH:
        limits.append(stated)
    return min(limits)
