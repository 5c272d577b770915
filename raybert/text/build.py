"""A tokenizer of the `tokenizers` library, made from what a checkpoint's files say."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from raybert.errors import CheckpointError
from raybert.text.files import Definition, Options

# White space as `str.split` of the reference sees it, as the inside of a character class.
_WHITE = r"\x{9}-\x{d}\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"

# Private-use code points: cleaning removes them from every text, so none can be confused with a text's own.
_FIRST_STAND_IN = 0xF0000


def build(definition: Definition, more: Sequence[AddedToken] = ()) -> tokenizers.Tokenizer:
    """Make the tokenizer; it neither truncates nor pads.

    Args:
        definition: what the files say.
        more: tokens to add behind all others.

    Raises:
        CheckpointError: [UNK], [CLS] or [SEP] is missing, tokenizer.json is malformed, or an added token can't
            have the id that the files give it.
    """
    options = definition.options
    if options is None:
        made = _from_serialized(definition)
    else:
        unk_token = definition.names["unk_token"].content
        if unk_token not in definition.vocabulary:
            raise CheckpointError(_lacks(definition, "unk_token"))
        made = bert(definition.vocabulary, options, unk_token=unk_token)
    _add_tokens(made, definition)
    made.add_tokens(list(more))
    for role in ("unk_token", "cls_token", "sep_token"):
        if made.token_to_id(definition.names[role].content) is None:
            raise CheckpointError(_lacks(definition, role))
    made.encode_special_tokens = definition.split_special
    if options is not None:
        _know_stand_ins(made, definition, options, definition.names["unk_token"].content)
        cls_token, sep_token = (definition.names[role].content for role in ("cls_token", "sep_token"))
        made.post_processor = template(made, cls_token, sep_token)
    return made


def bert(vocabulary: Mapping[str, int], options: Options, *, unk_token: str) -> tokenizers.Tokenizer:
    """BERT's normalisation, splitting and WordPiece over a vocabulary; no special tokens yet.

    Equal, id for id, to transformers 5 and to the pure-Python tokenizer before it, where those two agree. Where
    they differ, transformers 5 is followed in Unicode tables and in not composing texts (NFC); the options
    never_split and do_basic_tokenize, which transformers 5 reads and ignores, work as in the older one.
    """
    splitter: pre_tokenizers.PreTokenizer = pre_tokenizers.BertPreTokenizer()
    if not options.do_basic_tokenize:
        splitter = pre_tokenizers.Split(Regex(f"[{_WHITE}]+"), "removed")
    made = tokenizers.Tokenizer(_wordpiece(vocabulary, unk_token))
    if options.do_basic_tokenize:
        made.normalizer = _normalizer(options)
    made.pre_tokenizer = splitter
    made.decoder = decoders.WordPiece(prefix="##")
    return made


def _know_stand_ins(made: tokenizers.Tokenizer, definition: Definition, options: Options, unk_token: str) -> None:
    """Give what stands for words of never_split ids of their own, above all others; callers take them back.

    The last step, because the library numbers added tokens by the size of the model's vocabulary.
    """
    first = 1 + max(made.get_vocab(with_added_tokens=True).values())
    ids = {stand_in: first + index for index, stand_in in enumerate(stand_ins(options).values())}
    if ids:
        made.model = _wordpiece({**definition.vocabulary, **ids}, unk_token)


def _wordpiece(vocabulary: Mapping[str, int], unk_token: str) -> models.WordPiece:
    return models.WordPiece(dict(vocabulary), unk_token=unk_token, max_input_chars_per_word=100)


def template(made: tokenizers.Tokenizer, cls_token: str, sep_token: str) -> processors.TemplateProcessing:
    """``[CLS] A [SEP]`` and ``[CLS] A [SEP] B [SEP]``, the second part with token type 1."""
    return processors.TemplateProcessing(
        single=f"{cls_token}:0 $A:0 {sep_token}:0",
        pair=f"{cls_token}:0 $A:0 {sep_token}:0 $B:1 {sep_token}:1",
        special_tokens=[(token, made.token_to_id(token)) for token in dict.fromkeys((cls_token, sep_token))],
    )


def lower_first(made: tokenizers.Tokenizer) -> None:
    """Lower-case texts before everything else, as sentence-transformers' do_lower_case does."""
    steps = [normalizers.Lowercase()]
    if made.normalizer is not None:
        steps.append(made.normalizer)
    made.normalizer = normalizers.Sequence(steps)


def _from_serialized(definition: Definition) -> tokenizers.Tokenizer:
    path = definition.folder / "tokenizer.json"
    assert definition.serialized is not None
    try:
        made = tokenizers.Tokenizer.from_str(definition.serialized)
        made.encode("a")  # some damage shows only in use
    except Exception as error:  # the library raises bare Exception for every kind of damage
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: the tokenizers library refuses it: {reason}") from error
    made.no_truncation()
    made.no_padding()
    return made


def _lacks(definition: Definition, role: str) -> str:
    return (
        f"{definition.folder}: the tokenizer's vocabulary lacks {definition.names[role].content!r}, "
        f"its {role}; name the right one in tokenizer_config.json"
    )


def _add_tokens(made: tokenizers.Tokenizer, definition: Definition) -> None:
    """Register the added tokens, then the special ones.

    A named special token that neither the files nor the vocabulary number, typically [MASK], is left out: the
    reference would give it the next free id, one that the model has no embedding for.
    """
    known = {token.content for token in made.get_added_tokens_decoder().values()}
    for index, token in definition.added:
        if token.content in known:
            continue
        made.add_tokens([token])
        known.add(token.content)
        if made.token_to_id(token.content) != index:
            raise CheckpointError(
                f"{definition.folder}: added token {token.content!r} should have id {index}, but its place in the "
                f"vocabulary is {made.token_to_id(token.content)}; save the tokenizer again"
            )
    named = [token for token in definition.names.values() if made.token_to_id(token.content) is not None]
    for token in (*named, *definition.extra):
        if token.content not in known:
            made.add_tokens([token])
            known.add(token.content)


def stand_ins(options: Options) -> dict[str, str]:
    """For every word that can occur and that splitting could hurt, the code point that takes its place."""
    words = dict.fromkeys(options.never_split if options.do_basic_tokenize else ())
    hurt = [word for word in words if len(word) > 1 and word.split() == [word]]
    return {word: chr(_FIRST_STAND_IN + index) for index, word in enumerate(hurt)}


def _normalizer(options: Options) -> normalizers.Normalizer:
    """BERT's normaliser; with words that are never split it works in steps, to catch them at the right moment.

    The pure-Python tokenizer looks a word up twice: as it stands between white space before accents go, and as
    it stands between white space or punctuation after. Each of the two moments gets its replacements here.
    """
    taking_place = stand_ins(options)
    if not taking_place:
        return normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=options.tokenize_chinese_chars,
            strip_accents=options.strip_accents,
            lowercase=options.do_lower_case,
        )
    strips = options.do_lower_case if options.strip_accents is None else options.strip_accents
    steps: list[normalizers.Normalizer] = [
        normalizers.BertNormalizer(True, options.tokenize_chinese_chars, False, options.do_lower_case)
    ]
    for word, stand_in in taking_place.items():
        # It composes a text first: either form of a composed word is this word, a decomposed word never occurs.
        if unicodedata.is_normalized("NFC", word):
            steps.append(_replace({word, unicodedata.normalize("NFD", word)}, stand_in, _WHITE))
    if strips:
        steps.append(normalizers.BertNormalizer(False, False, True, False))
    signs = punctuation()
    for word, stand_in in taking_place.items():
        edge = _WHITE if signs.intersection(word) else _WHITE + _class_of(signs)
        steps.append(_replace({word}, stand_in, edge))
    return normalizers.Sequence(steps)


def _replace(words: set[str], stand_in: str, edge: str) -> normalizers.Normalizer:
    """Replace the words where they stand between two characters of the class `edge`, or an end of the text."""
    either = "|".join(_literal(word) for word in sorted(words))
    return normalizers.Replace(Regex(f"(?<![^{edge}])(?:{either})(?![^{edge}])"), stand_in)


def _literal(word: str) -> str:
    """A pattern that matches exactly this text in the library's regular expressions."""
    return "".join(letter if letter.isalnum() else f"\\x{{{ord(letter):x}}}" for letter in word)


def _class_of(letters: Iterable[str]) -> str:
    """The inside of a character class that holds exactly these letters."""
    return "".join(f"\\x{{{ord(letter):x}}}" for letter in sorted(letters))


@cache
def punctuation() -> frozenset[str]:
    """What BERT's splitter takes for punctuation.

    Asked of the splitter itself: its Unicode tables are its own, neither Python's nor the regular expressions'.
    Unicode has no punctuation beyond plane 1.
    """
    everything = "a".join(chr(point) for point in range(0x21, 0x20000) if not 0xD800 <= point < 0xE000)
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str(everything)
    return frozenset(word for word, _ in split if len(word) == 1 and word != "a")
