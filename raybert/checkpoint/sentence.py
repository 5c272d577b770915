"""What a sentence-transformers folder says to do with the token vectors: pooling, dense layers, normalising.

``modules.json`` lists modules in order: a Transformer, a Pooling, then any of Dense, Normalize and Dropout.
Their settings lie in one folder each. Whatever can't be honoured is an error that names it: leaving a module
out would give other vectors without a word. The files are those that sentence-transformers 2 to 6 write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from raybert.checkpoint.jsonfile import read_json, read_json_object
from raybert.checkpoint.rules import is_int
from raybert.errors import CheckpointError

MODULES_FILE = "modules.json"
TRANSFORMER_FILE = "sentence_bert_config.json"
PROMPTS_FILE = "config_sentence_transformers.json"

# Old files switch each mode on by a boolean and concatenate in this order; new ones list the modes.
_OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLING_MODES = tuple(_OLD_POOLING_KEYS.values())

_ACTIVATIONS = {
    "ELU": "elu",
    "GELU": "gelu",
    "Hardswish": "hardswish",
    "Identity": "linear",
    "LeakyReLU": "leaky_relu",
    "Mish": "mish",
    "ReLU": "relu",
    "ReLU6": "relu6",
    "Sigmoid": "sigmoid",
    "SiLU": "silu",
    "Tanh": "tanh",
}
_ACTIVATION_PLACES = ("torch.nn", "torch.nn.modules.activation", "torch.nn.modules.linear")

_TRANSFORMERS = ("Transformer", "MLMTransformer")
_VECTOR = "sentence_embedding"
# The one value of each setting under which a module does what raybert does; another value is refused.
_TRANSFORMER_SETTINGS: dict[str, Any] = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "processing_kwargs": {},
    "query_length": None,
    "document_length": None,
    "query_expansion": None,
    "config_args": {},
    "config_kwargs": {},
    "tokenizer_args": {},
    "processor_kwargs": {},
}
_WORD_SETTINGS: dict[str, Any] = {
    "transformer_task": "fill-mask",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
}
# Arguments of the reference's loader that say how to compute, not what.
_HARMLESS_MODEL_ARGUMENTS = {
    "torch_dtype",
    "dtype",
    "attn_implementation",
    "add_pooling_layer",
    "trust_remote_code",
}
_DENSE_SETTINGS: dict[str, Any] = {
    "module_input_name": _VECTOR,
    "module_output_name": _VECTOR,
    "use_residual": False,
}
_NORMALIZE_SETTINGS: dict[str, Any] = {"module_input_name": _VECTOR, "module_output_name": _VECTOR}


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """How the token vectors of a text become one vector.

    Attributes:
        modes: of `POOLING_MODES`; the results of several are concatenated in this order.
        include_prompt: whether a prompt's tokens are pooled too; attention sees them either way.
    """

    modes: tuple[str, ...]
    include_prompt: bool = True


@dataclass(frozen=True, kw_only=True)
class Splade:
    """How the word logits of a text's tokens become one number a word (Formal et al. 2021).

    Attributes:
        strategy: "max" or "sum" over tokens of ``log(1 + relu(logit))``.
        log_twice: whether the logarithm is taken twice (sentence-transformers' "log1p_relu").
    """

    strategy: str = "max"
    log_twice: bool = False


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A linear layer and an activation on the pooled vector.

    Attributes:
        folder: where its weights lie: ``linear.weight`` [out, in] and, with `bias`, ``linear.bias`` [out].
        in_features: width of the vector that comes in.
        out_features: width of the vector that goes out.
        bias: whether it has a bias.
        activation: a name of `raybert.checkpoint.config.ACTIVATIONS`; "linear" is none.
    """

    folder: Path
    in_features: int
    out_features: int
    bias: bool
    activation: str


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """Division of the vector by its length."""


@dataclass(frozen=True, kw_only=True)
class TransformerSettings:
    """What sentence_bert_config.json says: None or False where it says nothing.

    Attributes:
        max_seq_length: tokens that a text is cut to, special tokens included.
        do_lower_case: lower-case the text before the tokenizer.
    """

    max_seq_length: int | None = None
    do_lower_case: bool = False


@dataclass(frozen=True, kw_only=True)
class SentenceModules:
    """Everything after the token vectors, and what is put before the text.

    Attributes:
        pooling: from token vectors to one vector.
        after: what is then done to it, in order.
        max_seq_length: as in `TransformerSettings`.
        do_lower_case: as in `TransformerSettings`.
        prompts: name -> text put before the input.
        default_prompt: the name, in `prompts`, of the one used when none is asked for; or None.
        splade: how words are weighed, in a checkpoint made for sparse vectors; `pooling` then has no part in it.
    """

    pooling: Pooling
    after: tuple[Dense | Normalize, ...] = ()
    max_seq_length: int | None = None
    do_lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    splade: Splade | None = None

    def width(self, hidden_size: int) -> int:
        """How many numbers the final vector has, from token vectors of `hidden_size`."""
        dense = [module for module in self.after if isinstance(module, Dense)]
        return dense[-1].out_features if dense else hidden_size * len(self.pooling.modes)


@dataclass(frozen=True, kw_only=True)
class ModuleRow:
    """One line of modules.json: the class's bare and full name, and its folder ("": the checkpoint's own)."""

    kind: str
    type: str
    path: str


def read_modules(folder: Path) -> tuple[ModuleRow, ...] | None:
    """The lines of the folder's modules.json in order, or None when it has no such file.

    Raises:
        CheckpointError: the file is damaged, or names a folder outside the checkpoint.
    """
    place = folder / MODULES_FILE
    if not place.is_file():
        return None
    rows = read_json(place)
    if not isinstance(rows, list) or not rows:
        raise CheckpointError(f"{place}: damaged: expected a list of modules")
    modules = []
    for row in rows:
        kind, path = (row.get("type"), row.get("path")) if isinstance(row, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(path, str):
            raise CheckpointError(f"{place}: damaged: the module {row!r} lacks type or path")
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path:
            raise CheckpointError(f"{place}: module path {path!r} leads out of the checkpoint's folder")
        modules.append(ModuleRow(kind=kind.rpartition(".")[2], type=kind, path=path))
    return tuple(modules)


def transformer_path(modules: tuple[ModuleRow, ...] | None) -> str:
    """The subfolder that holds config.json, tokenizer and weights of the BERT: mostly "", its own."""
    return next((row.path for row in modules or () if row.kind in _TRANSFORMERS), "")


def read_transformer_settings(folder: Path) -> TransformerSettings:
    """Read sentence_bert_config.json of the Transformer's folder; all defaults when it has none.

    Raises:
        CheckpointError: the file is damaged or a value is out of range.
    """
    place = folder / TRANSFORMER_FILE
    settings = read_json_object(place) if place.is_file() else {}
    max_seq_length, lower = settings.get("max_seq_length"), settings.get("do_lower_case", False)
    if max_seq_length is not None and not (is_int(max_seq_length) and max_seq_length >= 1):
        raise CheckpointError(f"{place}: max_seq_length {max_seq_length!r} is not a whole number of at least 1")
    if not isinstance(lower, bool):
        raise CheckpointError(f"{place}: do_lower_case {lower!r} is not true or false")
    return TransformerSettings(max_seq_length=max_seq_length, do_lower_case=lower)


def read_sentence_modules(folder: Path, hidden_size: int) -> SentenceModules | None:
    """Read the sentence-transformers side of a checkpoint; None for a plain BERT folder.

    Args:
        folder: the checkpoint's own folder, where modules.json lies.
        hidden_size: width of the token vectors; every module's width is checked against what reaches it.

    Raises:
        CheckpointError: a file is damaged, or a module or setting can't be honoured; the message names it.
    """
    rows = read_modules(folder)
    if rows is None:
        return None
    place = folder / MODULES_FILE
    for row in rows:
        if not row.type.startswith("sentence_transformers."):
            raise CheckpointError(f"{place}: module {row.type!r} is code of its own, which raybert doesn't run")
    kinds = [row.kind for row in rows]
    if len(kinds) > 1 and kinds[0] in _TRANSFORMERS and kinds[1] == "SpladePooling":
        return _read_splade(folder, rows)
    for position, wanted in enumerate(("Transformer", "Pooling")):
        found = kinds[position] if position < len(kinds) else "nothing"
        if found != wanted:
            raise CheckpointError(f"{place}: module {position} is {found}; raybert can honour only {wanted} there")
    bert = folder / rows[0].path
    _check_transformer(bert / TRANSFORMER_FILE, _TRANSFORMER_SETTINGS)
    settings = read_transformer_settings(bert)
    pooling = _read_pooling(folder / rows[1].path / "config.json", hidden_size)
    prompts, default_prompt = _read_prompts(folder / PROMPTS_FILE)
    return SentenceModules(
        pooling=pooling,
        after=_read_after(folder, rows[2:], hidden_size * len(pooling.modes)),
        max_seq_length=settings.max_seq_length,
        do_lower_case=settings.do_lower_case,
        prompts=prompts,
        default_prompt=default_prompt,
    )


def _read_splade(folder: Path, rows: tuple[ModuleRow, ...]) -> SentenceModules:
    if len(rows) > 2:
        raise CheckpointError(
            f"{folder / MODULES_FILE}: module {rows[2].type!r} behind SpladePooling can't be honoured"
        )
    bert = folder / rows[0].path
    _check_transformer(bert / TRANSFORMER_FILE, _TRANSFORMER_SETTINGS | _WORD_SETTINGS)
    place = folder / rows[1].path / "config.json"
    config = read_json_object(place)
    strategy, function = config.get("pooling_strategy", "max"), config.get("activation_function", "relu")
    if strategy not in ("max", "sum") or function not in ("relu", "log1p_relu"):
        raise CheckpointError(
            f"{place}: pooling_strategy {strategy!r} with activation_function {function!r} can't be honoured; "
            "known are max and sum, relu and log1p_relu"
        )
    settings = read_transformer_settings(bert)
    prompts, default_prompt = _read_prompts(folder / PROMPTS_FILE)
    return SentenceModules(
        pooling=Pooling(modes=("mean",)),
        max_seq_length=settings.max_seq_length,
        do_lower_case=settings.do_lower_case,
        prompts=prompts,
        default_prompt=default_prompt,
        splade=Splade(strategy=strategy, log_twice=function == "log1p_relu"),
    )


def _check_transformer(place: Path, wanted: Mapping[str, Any]) -> None:
    config = _check_settings(place, wanted, optional=True)
    for key in ("model_args", "model_kwargs"):
        for name in config.get(key) or {}:
            if name not in _HARMLESS_MODEL_ARGUMENTS:
                raise CheckpointError(f"{place}: {key} {name!r} can't be honoured")


def _read_after(folder: Path, rows: tuple[ModuleRow, ...], width: int) -> tuple[Dense | Normalize, ...]:
    modules: list[Dense | Normalize] = []
    for row in rows:
        if row.kind == "Dense":
            dense = _read_dense(folder / row.path, width)
            modules.append(dense)
            width = dense.out_features
        elif row.kind == "Normalize":
            _check_settings(folder / row.path / "config.json", _NORMALIZE_SETTINGS, optional=True)
            modules.append(Normalize())
        elif row.kind != "Dropout":  # which does nothing outside training
            raise CheckpointError(
                f"{folder / MODULES_FILE}: module {row.type!r} can't be honoured; "
                "raybert knows Dense, Normalize and Dropout after Pooling"
            )
    return tuple(modules)


def _read_pooling(place: Path, hidden_size: int) -> Pooling:
    config = read_json_object(place)
    width = config.get("embedding_dimension", config.get("word_embedding_dimension", hidden_size))
    if width != hidden_size:
        raise CheckpointError(f"{place}: pools vectors of {width!r} numbers, the BERT gives {hidden_size}")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _OLD_POOLING_KEYS.items() if config.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes:
        raise CheckpointError(f"{place}: pooling_mode {modes!r} is neither a mode nor a list of modes")
    for mode in [*modes, *(key for key in config if key.startswith("pooling_mode_"))]:
        if mode not in (*POOLING_MODES, *_OLD_POOLING_KEYS):
            raise CheckpointError(f"{place}: unknown pooling {mode!r}; known are {', '.join(POOLING_MODES)}")
    include_prompt = config.get("include_prompt", True)
    if not isinstance(include_prompt, bool):
        raise CheckpointError(f"{place}: include_prompt {include_prompt!r} is not true or false")
    return Pooling(modes=tuple(modes), include_prompt=include_prompt)


def _read_dense(folder: Path, width: int) -> Dense:
    place = folder / "config.json"
    config = _check_settings(place, _DENSE_SETTINGS)
    known = {"in_features", "out_features", "bias", "activation_function", *_DENSE_SETTINGS}
    unknown = sorted(set(config) - known)
    if unknown:
        raise CheckpointError(f"{place}: unknown setting {unknown[0]!r} of Dense can't be honoured")
    if config.get("in_features") != width:
        raise CheckpointError(
            f"{place}: in_features is {config.get('in_features')!r}, but vectors of {width} numbers reach it"
        )
    out, bias = config.get("out_features", 0), config.get("bias", True)
    if not is_int(out) or out < 1 or not isinstance(bias, bool):
        raise CheckpointError(f"{place}: out_features {out!r} or bias {bias!r} is no valid setting")
    activation = config.get("activation_function", "torch.nn.Tanh") or "torch.nn.Identity"
    return Dense(
        folder=folder,
        in_features=width,
        out_features=out,
        bias=bias,
        activation=_activation(place, activation),
    )


def _activation(place: Path, path: Any) -> str:
    """The name, in raybert's table, of an activation that sentence-transformers names by its class."""
    module, _, name = str(path).rpartition(".")
    if module not in _ACTIVATION_PLACES or name not in _ACTIVATIONS:
        raise CheckpointError(
            f"{place}: activation_function {path!r} can't be honoured; known are torch.nn's {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def _read_prompts(place: Path) -> tuple[dict[str, str], str | None]:
    config = read_json_object(place) if place.is_file() else {}
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(p, str | None) for p in prompts.values()):
        raise CheckpointError(f"{place}: prompts must map names to texts")
    prompts = {name: prompt or "" for name, prompt in prompts.items()}
    default = config.get("default_prompt_name") or None
    if default in ("query", "document"):
        # sentence-transformers gives every model these two, empty unless the file fills them.
        prompts.setdefault(default, "")
    if default is not None and default not in list(prompts):
        known = ", ".join(map(repr, prompts)) or "none"
        raise CheckpointError(f"{place}: default_prompt_name {default!r} is not among its prompts: {known}")
    return prompts, default


def _check_settings(place: Path, wanted: Mapping[str, Any], *, optional: bool = False) -> dict[str, Any]:
    """Read a module's settings; refuse a value with which the module does what raybert doesn't."""
    if optional and not place.is_file():
        return {}
    config = read_json_object(place)
    for key, value in wanted.items():
        if config.get(key, value) not in (value, None):
            raise CheckpointError(f"{place}: {key} {config[key]!r} can't be honoured; raybert knows only {value!r}")
    return config
