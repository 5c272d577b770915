"""Tiny checkpoints and real texts, made in code: no network, no torch, a few milliseconds each.

    folder = write_tiny_checkpoint(tmp_path / "m")  # a plain BERT folder
    write_tiny_checkpoint(tmp_path / "c", heads=("classifier",), config={"num_labels": 5})
    write_tiny_checkpoint(tmp_path / "s", sentence={"pooling": "cls", "normalize": True})
    write_tiny_checkpoint(tmp_path / "d", config={"is_decoder": True, "add_cross_attention": True})

Every parameter is random, biases and LayerNorms included, and depends only on the seed, its name and its
shape: two checkpoints with one seed and one configuration have the same trunk whatever their heads, and
another seed gives another trunk. The vocabulary is a real WordPiece one of `VOCAB_SIZE` pieces, so real
English tokenizes into words and pieces. The fixture ``tiny`` (conftest.py) is the plain folder, written once
a session: read only.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import string
import sysconfig
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from raybert.checkpoint.config import BertConfig
from raybert.checkpoint.names import HEADS, bare, pooler_names, trunk_names

VOCAB_SIZE = 2000
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


def tiny_config(**overrides: Any) -> dict[str, Any]:
    """A tiny ``config.json``: width 32, 2 layers, 4 heads, 128 positions, `VOCAB_SIZE` pieces."""
    sizes = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
    }
    return sizes | overrides


def tiny_tensors(
    config: dict[str, Any], *, seed: int = 0, heads: Sequence[str] = (), pooler: bool = True
) -> dict[str, np.ndarray]:
    """Random float32 tensors under canonical names (``bert.…``) for a configuration.

    Args:
        config: as from `tiny_config`.
        seed: another seed gives other numbers everywhere.
        heads: families of `raybert.checkpoint.names.HEADS`: "masked-lm", "next-sentence", "classifier", "qa";
            the classifier has ``num_labels`` rows; the masked-lm head comes without its tied decoder copies.
        pooler: whether the pooler is among them.
    """
    parsed = BertConfig.from_dict(config)
    shapes = dict(trunk_names(parsed))
    if pooler:
        shapes |= pooler_names(parsed)
    for family in heads:
        shapes |= _head_shapes(family, parsed)
    return {name: random_tensor(name, shape, seed) for name, shape in shapes.items()}


def random_tensor(name: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """Numbers that depend on seed, name and shape only; large enough that a wrong one shows in the output."""
    numbers = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    if name.endswith("LayerNorm.weight"):
        return (1.0 + 0.2 * numbers).astype(np.float32)
    scale = 0.2 if len(shape) == 1 else 1.0 / np.sqrt(shape[-1])
    return (scale * numbers).astype(np.float32)


def write_tiny_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    config: dict[str, Any] | None = None,
    heads: Sequence[str] = (),
    pooler: bool = True,
    prefix: bool | None = None,
    shards: int = 1,
    tokenizer: dict[str, Any] | None = None,
    tokenizer_json: bool = False,
    sentence: dict[str, Any] | None = None,
) -> Path:
    """Write a whole checkpoint into `folder` (made if missing) and return the folder.

    Args:
        folder: where to write config.json, the weights, vocab.txt, tokenizer_config.json.
        seed: decides every parameter.
        config: overrides for `tiny_config`.
        heads: head families to write weights for, see `tiny_tensors`.
        pooler: whether to write the pooler.
        prefix: ``bert.`` before trunk names, or not; None: as the reference saves it, only beside a head.
        shards: 1 writes model.safetensors, more write that many shards and model.safetensors.index.json.
        tokenizer: overrides for tokenizer_config.json, e.g. ``{"do_lower_case": False}``.
        tokenizer_json: also write the tokenizer.json that the vocabulary and tokenizer_config.json describe.
        sentence: None for a plain BERT folder; else what `write_sentence_files` takes as keywords.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = tiny_config(**(config or {}))
    write_json(folder / "config.json", settings)
    tensors = tiny_tensors(settings, seed=seed, heads=heads, pooler=pooler)
    if not (bool(heads) if prefix is None else prefix):
        tensors = {bare(name): tensor for name, tensor in tensors.items()}
    write_safetensors(folder, tensors, shards=shards)
    write_tokenizer_files(folder, tokenizer or {}, positions=settings["max_position_embeddings"])
    if tokenizer_json:
        write_tokenizer_json(folder)
    if sentence is not None:
        write_sentence_files(folder, settings["hidden_size"], seed=seed, **sentence)
    return folder


def write_safetensors(folder: Path, tensors: dict[str, np.ndarray], *, shards: int = 1) -> None:
    """Write model.safetensors, or `shards` files with an index that spread the tensors in turn."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    files = [f"model-{number + 1:05d}-of-{shards:05d}.safetensors" for number in range(shards)]
    weight_map = {name: files[position % shards] for position, name in enumerate(tensors)}
    for file in files:
        part = {name: tensor for name, tensor in tensors.items() if weight_map[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def write_tokenizer_files(folder: Path, overrides: dict[str, Any], *, positions: int = 128) -> None:
    """Write vocab.txt and tokenizer_config.json."""
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in vocabulary()), encoding="utf-8")
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "model_max_length": positions,
        **{f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS},
    }
    write_json(folder / "tokenizer_config.json", settings | overrides)


def write_tokenizer_json(folder: Path) -> None:
    """Write the tokenizer.json that vocab.txt and tokenizer_config.json of `folder` describe."""
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    pieces = {piece: number for number, piece in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings["tokenize_chinese_chars"],
        strip_accents=settings["strip_accents"],
        lowercase=settings["do_lower_case"],
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", pieces["[CLS]"]), ("[SEP]", pieces["[SEP]"])],
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def write_sentence_files(
    folder: Path,
    width: int,
    *,
    seed: int = 0,
    pooling: str | Sequence[str] = "mean",
    include_prompt: bool = True,
    normalize: bool = False,
    dense: Sequence[dict[str, Any]] = (),
    max_seq_length: int | None = None,
    do_lower_case: bool = False,
    prompts: dict[str, str] | None = None,
    default_prompt_name: str | None = None,
) -> None:
    """Add what sentence-transformers keeps beside a BERT: modules.json, 1_Pooling, dense layers, Normalize.

    Args:
        folder: the checkpoint.
        width: its hidden size.
        seed: decides the dense layers' numbers.
        pooling: one mode or several, by sentence-transformers' names ("cls", "mean", "max", …).
        include_prompt: whether a prompt's tokens are pooled too.
        normalize: whether the last module is Normalize.
        dense: a dict per Dense module: ``out_features``, and optionally ``bias`` (True), ``activation``
            ("torch.nn.modules.activation.Tanh").
        max_seq_length: of sentence_bert_config.json.
        do_lower_case: of sentence_bert_config.json.
        prompts: name -> text put before the input.
        default_prompt_name: the prompt used when none is asked for.
    """
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modes = [pooling] if isinstance(pooling, str) else list(pooling)
    config: dict[str, Any] = {"word_embedding_dimension": width, "include_prompt": include_prompt}
    write_json(folder / "1_Pooling" / "config.json", config | {_POOLING_KEYS[m]: m in modes for m in _POOLING_KEYS})
    features = width * len(modes)
    for spec in dense:
        name = f"{len(modules)}_Dense"
        _write_dense(folder / name, features, spec, seed)
        modules.append((name, "Dense"))
        features = spec["out_features"]
    if normalize:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
    rows = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(modules)
    ]
    write_json(folder / "modules.json", rows)
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": max_seq_length, "do_lower_case": do_lower_case},
    )
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": prompts or {}, "default_prompt_name": default_prompt_name},
    )


def write_json(path: Path, value: Any) -> Path:
    """Write `value` as JSON, the folder made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
    return path


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """A WordPiece vocabulary of `VOCAB_SIZE` pieces, letters of both cases, from the stdlib's docstrings."""
    letters = [*string.ascii_letters, *"éèüöçñßæøåàâîôû中文日本語東京αβγδпривет"]
    pieces = dict.fromkeys(SPECIAL_TOKENS)
    pieces |= dict.fromkeys([*string.punctuation, *string.digits, *letters])
    pieces |= dict.fromkeys(f"##{char}" for char in [*string.digits, *letters])
    text = " ".join(stdlib_docstrings(1500)).lower()
    words = Counter(re.findall(r"[a-z]{2,}", text))
    ends: Counter[str] = Counter()
    for word, count in words.items():
        for size in (2, 3, 4):
            if len(word) > size:
                ends[f"##{word[-size:]}"] += count
    # most_common keeps first-seen order among equals: the list depends on the stdlib's texts alone.
    pieces |= dict.fromkeys(end for end, _ in ends.most_common(400))
    pieces |= dict.fromkeys(word for word, _ in words.most_common(VOCAB_SIZE))
    assert len(pieces) >= VOCAB_SIZE
    return tuple(pieces)[:VOCAB_SIZE]


@functools.cache
def _first_docstrings(limit: int | None) -> tuple[str, ...]:
    found: list[str] = []
    for path in python_files(Path(sysconfig.get_paths()["stdlib"])):
        if limit is not None and len(found) >= limit:
            break
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    found.append(text)
    return tuple(found[:limit])


def stdlib_docstrings(limit: int | None = None) -> list[str]:
    """Docstrings of Python's standard library, of all lengths, in an order that its files alone decide."""
    return list(_first_docstrings(limit))


def python_files(folder: Path) -> Iterator[Path]:
    """Python files below a folder, tests and installed packages left out, sorted."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in _SKIPPED_FOLDERS:
            yield from python_files(path)
        elif path.suffix == ".py":
            yield path


def _head_shapes(family: str, config: BertConfig) -> dict[str, tuple[int, ...]]:
    width = config.hidden_size
    rows = {"classifier": config.num_labels, "qa": 2, "next-sentence": 2}.get(family, width)
    shapes: dict[str, tuple[int, ...]] = {}
    for name in HEADS[family]:
        if name == "cls.predictions.bias":
            shapes[name] = (config.vocab_size,)
        elif not name.startswith("cls.predictions.decoder."):
            is_matrix = name.endswith(".weight") and "LayerNorm" not in name
            shapes[name] = (rows, width) if is_matrix else (rows,)
    return shapes


_POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def _write_dense(folder: Path, features: int, spec: dict[str, Any], seed: int) -> None:
    bias = spec.get("bias", True)
    config = {
        "in_features": features,
        "out_features": spec["out_features"],
        "bias": bias,
        "activation_function": spec.get("activation", "torch.nn.modules.activation.Tanh"),
    }
    write_json(folder / "config.json", config)
    weight = random_tensor(f"{folder.name}.weight", (spec["out_features"], features), seed)
    tensors = {"linear.weight": weight}
    if bias:
        tensors["linear.bias"] = random_tensor(f"{folder.name}.bias", (spec["out_features"],), seed)
    save_file(tensors, folder / "model.safetensors")
