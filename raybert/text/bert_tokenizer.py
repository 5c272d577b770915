"""`BertTokenizer` and `BertTokenizerFast`: the reference's two faces of one tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import tokenizers
from tokenizers import AddedToken

from raybert.checkpoint.hub import resolve
from raybert.checkpoint.jsonfile import read_json_object
from raybert.config import one_of
from raybert.errors import CheckpointError, SettingsError, UsageError
from raybert.text.batch_encoding import BatchEncoding, Texts, library_rows
from raybert.text.build import build
from raybert.text.files import Definition, Options, read_definition, read_vocabulary
from raybert.text.overrides import changed, never_split_words, roles, special
from raybert.text.padding import Fill, by_name
from raybert.text.vocabulary import Vocabulary

UNLIMITED = int(1e30)
"""``model_max_length`` of a tokenizer that knows no limit, as in the reference."""

_STRATEGIES = ("longest_first", "only_first", "only_second", "do_not_truncate")
_PADDINGS = ("longest", "max_length", "do_not_pad")
_SIDES = ("right", "left")
_INPUTS = ("input_ids", "token_type_ids", "attention_mask")


class BertTokenizer(Vocabulary):
    """BERT's tokenizer: text or pairs of texts to ids, and back.

    Args:
        vocab_file: a vocab.txt, one token a line.
        do_lower_case: whether letters become small.
        do_basic_tokenize: whether texts are cleaned and split at punctuation before WordPiece.
        never_split: words that stay whole.
        unk_token: what an unknown word becomes.
        sep_token: between and behind texts.
        pad_token: padding.
        cls_token: before the first text.
        mask_token: what is to be predicted.
        tokenize_chinese_chars: whether each CJK ideograph is a word.
        strip_accents: whether combining marks go; None: when letters become small.
        clean_up_tokenization_spaces: whether `decode` takes spaces before punctuation out; None: the class's own.
        model_max_length: tokens that the model takes.
        padding_side: "right" or "left".
        truncation_side: the side that is cut, "right" or "left".
        additional_special_tokens: more tokens that are never split, and left out by ``skip_special_tokens``.
        split_special_tokens: whether special tokens in a text are ordinary text.
        model_input_names: what a call returns unless told.

    Raises:
        CheckpointError: the file can't be read, or lacks [UNK], [CLS] or [SEP].
        SettingsError: an option is out of range or unknown.
    """

    _cleans_up: ClassVar[bool] = True

    def __init__(  # noqa: PLR0917  the reference's options, in its order
        self,
        vocab_file: str | Path | None = None,
        do_lower_case: bool = True,
        do_basic_tokenize: bool = True,
        never_split: Iterable[str] | None = None,
        unk_token: str | AddedToken = "[UNK]",
        sep_token: str | AddedToken = "[SEP]",
        pad_token: str | AddedToken = "[PAD]",
        cls_token: str | AddedToken = "[CLS]",
        mask_token: str | AddedToken = "[MASK]",
        tokenize_chinese_chars: bool = True,
        strip_accents: bool | None = None,
        clean_up_tokenization_spaces: bool = True,
        **settings: Any,
    ) -> None:
        if vocab_file is None:
            raise SettingsError("vocab_file: missing; give the path of a vocab.txt, or call from_pretrained")
        options = Options(
            do_lower_case=do_lower_case,
            strip_accents=strip_accents,
            tokenize_chinese_chars=tokenize_chinese_chars,
            never_split=never_split_words(never_split),
            do_basic_tokenize=do_basic_tokenize,
        )
        named = {
            "unk_token": unk_token,
            "sep_token": sep_token,
            "pad_token": pad_token,
            "cls_token": cls_token,
            "mask_token": mask_token,
        }
        path = Path(vocab_file)
        definition = Definition(
            folder=path.parent,
            files=(path,),
            options=options,
            vocabulary=read_vocabulary(path),
            names={role: special(token) for role, token in named.items()} | roles(settings),
            extra=tuple(special(token) for token in settings.pop("additional_special_tokens", None) or ()),
            split_special=bool(settings.pop("split_special_tokens", False)),
        )
        self._set_up(definition, clean_up_tokenization_spaces=clean_up_tokenization_spaces, **settings)

    def _set_up(
        self,
        definition: Definition,
        *,
        clean_up_tokenization_spaces: bool | None = None,
        model_max_length: int | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
        model_input_names: Sequence[str] = _INPUTS,
        clean_text: bool = True,
        wordpieces_prefix: str = "##",
        **unknown: Any,
    ) -> None:
        if unknown:
            raise SettingsError(f"{next(iter(unknown))}: no option of this tokenizer")
        if not clean_text or wordpieces_prefix != "##":
            raise SettingsError("clean_text, wordpieces_prefix: BERT's own, True and '##', are the only ones there are")
        cleans = clean_up_tokenization_spaces
        self.clean_up_tokenization_spaces = self._cleans_up if cleans is None else cleans
        self.model_max_length = UNLIMITED if model_max_length is None else int(model_max_length)
        self.padding_side = one_of("padding_side", padding_side, _SIDES)
        self.truncation_side = one_of("truncation_side", truncation_side, _SIDES)
        self.model_input_names = list(model_input_names)
        self._define(definition, build(definition))

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | None = None,
        **changes: Any,
    ) -> Self:
        """The tokenizer of a checkpoint.

        Args:
            model: a folder, a hub id, or "demo".
            revision: branch, tag or commit of a hub id.
            token: access token for a hub id.
            cache_dir: where hub files are kept, if not in the hub's own cache.
            changes: options that override the checkpoint's.

        Raises:
            CheckpointError: the files are missing or malformed.
            SettingsError: an option is unknown or out of range.
        """
        folder = resolve(str(model), revision=revision, token=token, cache_dir=cache_dir, weights=False)
        definition = read_definition(folder)
        path = folder / "tokenizer_config.json"
        stored = read_json_object(path) if path.is_file() else {}
        kept = (
            "clean_up_tokenization_spaces",
            "model_max_length",
            "padding_side",
            "truncation_side",
            "model_input_names",
        )
        settings = {name: stored[name] for name in kept if stored.get(name) is not None}
        made = cls.__new__(cls)
        made._set_up(changed(definition, changes), **settings | changes)
        return made

    def __call__(  # noqa: PLR0913  the reference's arguments
        self,
        text: Texts,
        text_pair: Texts | None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        *,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Encode a text, a pair, or a list of either.

        Args:
            text: a text, or a list of them; with ``is_split_into_words`` words take the place of a text.
            text_pair: the second text of each pair.
            add_special_tokens: whether [CLS] and [SEP] are put around.
            padding: True or "longest": to the longest of the call; "max_length"; False.
            truncation: True or "longest_first": the longer text of a pair gives way; "only_first", "only_second";
                False. None cuts where ``max_length`` is given and nothing is padded.
            max_length: tokens of a row; None takes ``model_max_length``.
            stride: tokens that a row shares with the one its overflow goes to.
            is_split_into_words: texts come as lists of words.
            pad_to_multiple_of: pad a little further, to a multiple of this.
            padding_side: "right" or "left"; None takes the tokenizer's.
            return_tensors: "pt", "np", or None for lists.
            return_token_type_ids: 0 for the first text, 1 for the second.
            return_attention_mask: 1 at tokens, 0 at padding.
            return_overflowing_tokens: make further rows of what is cut off; ``overflow_to_sample_mapping`` says of
                which text each row is.
            return_special_tokens_mask: 1 at special tokens and padding.
            return_offsets_mapping: where each token lies in its text, as (start, end) in code points.
            return_length: how many tokens each row has.
            verbose: of the reference; nothing here warns.

        Raises:
            UsageError: an argument is out of range, or the texts and their pairs differ in number.
        """
        batched, rows = library_rows(text, text_pair, words=is_split_into_words)
        with self._lock:  # the library's limits belong to its tokenizer, not to a call
            try:
                self._limit(padding, truncation, max_length, stride, pad_to_multiple_of, padding_side)
                encodings = self.backend.encode_batch(
                    rows, is_pretokenized=is_split_into_words, add_special_tokens=add_special_tokens
                )
            except UsageError:
                raise
            except Exception as error:  # of every kind, a stride that is too long among them
                raise UsageError(f"text: the tokenizers library refuses it: {' '.join(str(error).split())}") from error
        groups = [[first, *first.overflowing] if return_overflowing_tokens else [first] for first in encodings]
        flat = [encoding for group in groups for encoding in group]
        wanted = {
            "input_ids": True,
            "token_type_ids": self._returns("token_type_ids", return_token_type_ids),
            "attention_mask": self._returns("attention_mask", return_attention_mask),
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
            "length": return_length,
        }
        data = {
            name: [self._part(name, encoding) for encoding in flat] for name, is_wanted in wanted.items() if is_wanted
        }
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = [row for row, group in enumerate(groups) for _ in group]
        if not batched and return_tensors is None and not return_overflowing_tokens:
            data = {name: values[0] if isinstance(values[0], list) else values for name, values in data.items()}
        return BatchEncoding(data, flat, self._words).convert_to_tensors(return_tensors)

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        *,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Fill up what calls gave, one encoding or several: as collators do.

        Args:
            encoded_inputs: what a call gave, or a list of such.
            padding: True or "longest", "max_length", or False.
            max_length: for "max_length"; None takes ``model_max_length``.
            pad_to_multiple_of: pad a little further, to a multiple of this.
            padding_side: "right" or "left"; None takes the tokenizer's.
            return_attention_mask: add a mask where there is none; None: if calls return one.
            return_tensors: "pt", "np", or None for lists.
            verbose: of the reference; nothing here warns.

        Raises:
            UsageError: there are no ids, or an argument is out of range.
        """
        batched, rows = by_name(encoded_inputs)
        if self._returns("attention_mask", return_attention_mask) and "attention_mask" not in rows:
            rows["attention_mask"] = [[1] * len(row) for row in rows["input_ids"]]
        how = _one_of("padding", _said(padding, "longest", "do_not_pad"), _PADDINGS)
        limit = self.model_max_length if max_length is None else max_length
        if how == "longest" or (how == "max_length" and limit < UNLIMITED // 10**10):
            side = _one_of("padding_side", padding_side or self.padding_side, _SIDES)
            length = limit if how == "max_length" else None
            fill = Fill(values=self._fillings(), length=length, multiple=pad_to_multiple_of, side=side)
            rows = fill(rows)
        data = rows if batched else {name: values[0] for name, values in rows.items()}
        return BatchEncoding(data).convert_to_tensors(return_tensors)

    def _fillings(self) -> dict[str, int]:
        if self.pad_token_id is None:
            raise UsageError("padding: this tokenizer has no [PAD]; set pad_token")
        return {"input_ids": self.pad_token_id, "attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}

    encode_plus = batch_encode_plus = __call__

    def encode(self, text: Texts, text_pair: Texts | None = None, **arguments: Any) -> Any:
        """The ids of one text or pair; arguments as for a call."""
        return self(text, text_pair, **arguments)["input_ids"]

    def tokenize(self, text: str, pair: str | None = None, *, add_special_tokens: bool = False) -> list[str]:
        """The tokens of one text or pair."""
        return self(text, pair, add_special_tokens=add_special_tokens).tokens()

    def _returns(self, name: str, asked: bool | None) -> bool:
        return name in self.model_input_names if asked is None else asked

    def _part(self, name: str, encoding: tokenizers.Encoding) -> Any:
        match name:
            case "input_ids":
                return self._real(encoding.ids)
            case "token_type_ids":
                return encoding.type_ids
            case "offset_mapping":
                return encoding.offsets
            case "length":
                return len(encoding.ids)
        return getattr(encoding, name)

    def _limit(
        self,
        padding: bool | str,
        truncation: bool | str | None,
        max_length: int | None,
        stride: int,
        pad_to_multiple_of: int | None,
        padding_side: str | None,
    ) -> None:
        """Set the library's truncation and padding for one call."""
        if truncation is None:
            truncation = max_length is not None and padding is False
        strategy = _one_of("truncation", _said(truncation, "longest_first", "do_not_truncate"), _STRATEGIES)
        fill = _one_of("padding", _said(padding, "longest", "do_not_pad"), _PADDINGS)
        limit = self.model_max_length if max_length is None else max_length
        is_limited = limit < UNLIMITED // 10**10
        if strategy == "do_not_truncate" or not is_limited:
            self.backend.no_truncation()
        else:
            self._check_limit(limit, fill, pad_to_multiple_of)
            self.backend.enable_truncation(limit, stride=stride, strategy=strategy, direction=self.truncation_side)
        if fill == "do_not_pad" or (fill == "max_length" and not is_limited):
            self.backend.no_padding()
            return
        self.backend.enable_padding(
            direction=_one_of("padding_side", padding_side or self.padding_side, _SIDES),
            pad_id=self._fillings()["input_ids"],
            pad_token=self.pad_token,
            length=limit if fill == "max_length" else None,
            pad_to_multiple_of=pad_to_multiple_of,
        )

    def _check_limit(self, limit: int, fill: str, multiple: int | None) -> None:
        if limit < 0:
            raise UsageError(f"max_length: {limit}; takes a whole number from 0")
        if fill != "do_not_pad" and multiple is not None and limit % multiple:
            raise UsageError(f"pad_to_multiple_of: {multiple} does not divide the truncation's length {limit}")


class BertTokenizerFast(BertTokenizer):
    """`BertTokenizer` with the arguments of the reference's fast tokenizer, and its `decode`: spaces stay unless told.

    Args:
        vocab_file: a vocab.txt.
        tokenizer_file: or a tokenizer.json, whose vocabulary and added tokens are taken.
        options: as those of `BertTokenizer`, by name.
    """

    _cleans_up = False

    def __init__(
        self, vocab_file: str | Path | None = None, tokenizer_file: str | Path | None = None, **options: Any
    ) -> None:
        options.setdefault("clean_up_tokenization_spaces", self._cleans_up)
        if tokenizer_file is None:
            super().__init__(vocab_file, **options)
            return
        path = Path(tokenizer_file)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file")
        definition = read_definition(path.parent, json_path=path)
        self._set_up(changed(definition, options), **options)


def _said(value: bool | str, yes: str, no: str) -> str:
    """The name of a strategy that may be given as True or False."""
    if isinstance(value, bool):
        return yes if value else no
    return value


def _one_of(name: str, value: Any, allowed: Sequence[str]) -> str:
    for known in allowed:
        if value == known:  # the reference's enumerations equal their names
            return known
    raise UsageError(f"{name}: {value!r}; takes one of {', '.join(allowed)}")
