"""`BertConfig`: every field and default of the BERT reference, read from and written to its ``config.json``.

The names and defaults are the reference's (transformers 4.57 and 5), because checkpoints are exchanged with
it; the checks are ours. Keys that raybert doesn't know are kept, reachable as attributes, and written back.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from raybert.checkpoint.jsonfile import read_json_object
from raybert.checkpoint.rules import ACTIVATIONS, BERT_SIGNS, REFUSED_KEYS, RULES, is_int
from raybert.errors import CheckpointError

__all__ = ["ACTIVATIONS", "BertConfig"]


@dataclass(init=False, repr=False)
class BertConfig:
    """The settings of one BERT, with the reference's names and defaults.

    Keyword-only. A known field may be assigned after construction, as users of the reference do, and its
    value is checked then. Other keywords are kept in `extra` and reachable as attributes:
    ``BertConfig(foo=1).foo == 1``. Two configs are equal when every field and every extra key is.

    Attributes:
        id2label: label of each class, by class number; ``num_labels=n`` makes ``LABEL_0 .. LABEL_{n-1}``.
        label2id: the other way round; None when the file names only ``id2label``, as in the reference.
        dtype: the weights' dtype by torch's name, or None; ``torch_dtype`` is its old name.
        extra: keys that are no field of BERT, kept as they came.

    Raises:
        CheckpointError: a value that no BERT can have; the message names field, value and limit.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    position_embedding_type: str = "absolute"
    use_cache: bool = True
    classifier_dropout: float | None = None
    is_decoder: bool = False
    add_cross_attention: bool = False
    is_encoder_decoder: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    problem_type: str | None = None
    chunk_size_feed_forward: int = 0
    output_attentions: bool | None = False
    output_hidden_states: bool | None = False
    return_dict: bool | None = True
    dtype: str | None = None
    architectures: list[str] | None = None
    model_type: str = "bert"
    id2label: dict[int, str] = field(default_factory=dict)
    label2id: dict[str, int] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __init__(self, **values: Any) -> None:
        self._fill("BertConfig", dict(values))

    def _fill(self, place: str, values: dict[str, Any]) -> None:
        """Set every field from `values` or its default, then check; `place` begins each error message."""
        old_dtype = values.pop("torch_dtype", None)
        if values.get("dtype") is None and old_dtype is not None:
            values["dtype"] = old_dtype
        _check_model_type(place, values)
        num_labels = values.pop("num_labels", None)
        id2label = values.pop("id2label", None)
        label2id = values.pop("label2id", None)
        for spec in fields(self)[:-1]:  # the last is `extra`: what remains
            if spec.name in values:
                _check_field(place, spec.name, values[spec.name])
                vars(self)[spec.name] = _plain(spec.name, values.pop(spec.name))
            elif spec.default is not MISSING:
                vars(self)[spec.name] = spec.default
        vars(self)["extra"] = values
        vars(self)["id2label"], vars(self)["label2id"] = _labels(place, num_labels, id2label, label2id)
        _check_together(place, self)

    def __getattr__(self, name: str) -> Any:
        """Extra keys are attributes too; reached only when no field has the name."""
        extra = vars(self).get("extra", {})
        if name in extra:
            return extra[name]
        raise AttributeError(f"BertConfig has no field and no extra key {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign a field, checked, or an extra key."""
        if name == "num_labels":
            vars(self)["id2label"], vars(self)["label2id"] = _labels("BertConfig", value, None, None)
        elif name == "id2label":
            vars(self)["id2label"], _ = _labels("BertConfig", None, value, None)
        elif name in vars(self):
            _check_field("BertConfig", name, value)
            vars(self)[name] = _plain(name, value)
        else:
            self.extra[name] = value

    def __repr__(self) -> str:
        """Show the JSON, as the reference does."""
        return f"BertConfig {self.to_json_string()}"

    @property
    def num_labels(self) -> int:
        """How many classes a classification head has: the length of `id2label`."""
        return len(self.id2label)

    @property
    def use_return_dict(self) -> bool:
        """Whether a forward returns an output object: `return_dict`, null meaning no."""
        return bool(self.return_dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in the order of the classification head's rows.

        Raises:
            CheckpointError: the class numbers are not 0 .. n-1, so that rows would have no label.
        """
        wanted = range(len(self.id2label))
        if sorted(self.id2label) != list(wanted):
            raise CheckpointError(
                f"config.json: id2label has the numbers {sorted(self.id2label)}, "
                f"but its {len(wanted)} classes are numbered from 0; correct id2label"
            )
        return tuple(self.id2label[number] for number in wanted)

    def replace(self, **changes: Any) -> BertConfig:
        """A copy with other values, checked as a whole; ``num_labels`` renames the labels.

        Raises:
            CheckpointError: as the constructor.
        """
        return type(self)(**_merged(self.to_dict(), changes))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, place: str = "config", **changes: Any) -> BertConfig:
        """Build from the contents of a ``config.json``, with `changes` over it.

        Args:
            values: the keys of the file; not modified.
            place: where they come from, for error messages.
            changes: fields that override the file's.

        Raises:
            CheckpointError: a value that no BERT can have, or another ``model_type``.
        """
        values = dict(values)
        if "model_type" not in values and not any(sign in values for sign in BERT_SIGNS):
            raise CheckpointError(
                f"{place}: no model_type and none of {', '.join(BERT_SIGNS)}; this configures no BERT"
            )
        if values.get("id2label") is not None:
            # Files written by old versions may hold both; the reference believes the names, and so do we.
            values.pop("num_labels", None)
        config = cls.__new__(cls)
        config._fill(place, _merged(values, changes))
        return config

    @classmethod
    def from_json_file(cls, path: str | Path, **changes: Any) -> BertConfig:
        """Read one JSON file.

        Raises:
            CheckpointError: the file is missing or no JSON object, or a value is wrong.
        """
        return cls.from_dict(read_json_object(Path(path)), place=str(path), **changes)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | None = None,
        **changes: Any,
    ) -> BertConfig:
        """Read the configuration of a checkpoint: a folder, its ``config.json``, a hub id, or "demo".

        Args:
            model: where the checkpoint is; of a hub id no weights are fetched. Google's ``bert_config.json`` will do.
            revision: branch, tag or commit of a hub id.
            token: access token for a hub id.
            cache_dir: where hub files are kept, if not in the hub's own cache.
            changes: fields that override the file's, e.g. ``num_labels=5``.

        Raises:
            CheckpointError: no such checkpoint, or a configuration that raybert can't honour.
        """
        if Path(model).is_file():
            return cls.from_json_file(model, **changes)
        # Only this one method needs the hub; the module itself stays a leaf.
        from raybert.checkpoint.hub import CONFIG_FILES, resolve

        folder = resolve(str(model), revision=revision, token=token, cache_dir=cache_dir, weights=False)
        places = [folder / name for name in CONFIG_FILES]
        return cls.from_json_file(next((place for place in places if place.is_file()), places[0]), **changes)

    def to_dict(self) -> dict[str, Any]:
        """Every field and extra key, as plain values that JSON can hold; the caller's to keep."""
        known = {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.name != "extra"}
        return copy.deepcopy({**self.extra, **known})

    def to_json_string(self) -> str:
        """The text of ``config.json``: sorted keys, two spaces, a newline at the end."""
        # Sorting needs one kind of key; ints of id2label become strings in JSON anyway.
        values = self.to_dict()
        values["id2label"] = {str(number): label for number, label in values["id2label"].items()}
        return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write ``config.json`` into `folder`, made if it is missing; returns the file's path."""
        target = Path(folder) / "config.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self.to_json_string(), encoding="utf-8")
        return target


def _merged(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` over `values`; new labels or a new number of labels drop the old names."""
    if "num_labels" in changes and changes["num_labels"] != len(values.get("id2label") or ()):
        values = {**values, "id2label": None, "label2id": None}
    if "id2label" in changes:
        values = {**values, "label2id": None, "num_labels": None}
    if "torch_dtype" in changes:
        values = {**values, "dtype": None}
    return {**values, **changes}


def _plain(name: str, value: Any) -> Any:
    """A torch.dtype is kept by its name, so that configs need no torch; everything else as it is."""
    return str(value).removeprefix("torch.") if name == "dtype" and value is not None else value


def _check_model_type(place: str, values: dict[str, Any]) -> None:
    model_type = values.get("model_type", "bert")
    if model_type != "bert":
        raise CheckpointError(f"{place}: model_type {model_type!r} is not supported; raybert runs bert models")
    for key in REFUSED_KEYS:
        if values.get(key):
            raise CheckpointError(f"{place}: {key} is set, which raybert can't honour; use a checkpoint without it")


def _check_field(place: str, name: str, value: Any) -> None:
    rule = RULES.get(name)
    if rule is not None and not rule.holds(_plain(name, value)):
        raise CheckpointError(f"{place}: {name} {value!r} is not {rule.meaning}")


def _check_together(place: str, config: BertConfig) -> None:
    """Checks that need more than one field."""
    if config.hidden_size % config.num_attention_heads:
        raise CheckpointError(
            f"{place}: hidden_size {config.hidden_size} is not a multiple of "
            f"num_attention_heads {config.num_attention_heads}"
        )
    if config.pad_token_id is not None and config.pad_token_id >= config.vocab_size:
        raise CheckpointError(
            f"{place}: pad_token_id {config.pad_token_id} exceeds the last token id, {config.vocab_size - 1}"
        )
    if config.problem_type == "single_label_classification" and config.num_labels == 1:
        raise CheckpointError(
            f"{place}: problem_type 'single_label_classification' needs num_labels of at least 2, not 1; "
            "use 'regression' for one output"
        )


def _labels(place: str, num_labels: Any, id2label: Any, label2id: Any) -> tuple[dict[int, str], dict[str, int] | None]:
    """The two label maps from whichever of the three settings are given, as the reference derives them."""
    if num_labels is not None and not (is_int(num_labels) and num_labels >= 0):
        raise CheckpointError(f"{place}: num_labels {num_labels!r} is not a whole number of at least 0")
    if id2label is None:
        names = {number: f"LABEL_{number}" for number in range(2 if num_labels is None else num_labels)}
        return names, {label: number for number, label in names.items()}
    try:
        names = {int(number): str(label) for number, label in id2label.items()}
        numbers = None if label2id is None else {str(label): int(n) for label, n in label2id.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{place}: id2label must map class numbers to labels and label2id the other way round: {error}"
        ) from error
    if num_labels is not None and num_labels != len(names):
        raise CheckpointError(f"{place}: num_labels {num_labels} contradicts the {len(names)} labels of id2label")
    return names, numbers
