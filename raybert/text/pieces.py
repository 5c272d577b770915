"""Cutting huge texts where BERT's tokenizer would separate words anyway.

The library holds 100 bytes and more per character while it works on a text (1.2 GB for 10 MB of English, 4 GB
for 10 MB of JSON), so huge texts go to it in pieces. A cut is safe behind a character that is a word of its own
or none: nothing reaches across it, neither lower-casing, nor accents, nor the pieces of a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import tokenizers
from tokenizers import normalizers, pre_tokenizers

from raybert.text.files import Options

PIECE_CHARS = 16_384
"""A piece is this long, and on to the next place where a cut is safe."""

_SPACE = " \t\n\r"
# "_" is not among them: it counts as a letter where an added token asks for a word's edge.
_SIGNS = "!\"#$%&'()*+,-./:;<=>?@[\\]^`{|}~"
_FIRST_IDEOGRAPH, _LAST_IDEOGRAPH = "\u4e00", "\u9fff"


def safe_cut(made: tokenizers.Tokenizer, options: Options | None) -> re.Pattern[str] | None:
    """The characters behind which a text may be cut without any change of its tokens; None: nowhere.

    Added and special tokens are found in the text as it stands, so no character of one is safe; one that takes
    in the white space beside it, or holds some, makes white space unsafe.

    Args:
        made: the finished tokenizer.
        options: those of BERT's tokenizer that it was built from; None: it came whole from tokenizer.json.
    """
    if options is None:
        whole_words, cjk = False, _cleans_like_bert(made)
        if cjk is None:
            return None
    else:
        # Words that are never split lie between white space, with whatever is in them.
        whole_words = bool(options.never_split) or not options.do_basic_tokenize
        cjk = options.tokenize_chinese_chars
    space, signs, ideographs = _SPACE, "" if whole_words else _SIGNS, cjk and not whole_words
    for token in made.get_added_tokens_decoder().values():
        forms = token.content + (made.normalizer.normalize_str(token.content) if made.normalizer else "")
        if token.lstrip or token.rstrip or any(letter.isspace() for letter in forms):
            space = ""
        if token.single_word or any(letter.isspace() or letter > "\u2e80" for letter in forms):
            ideographs = False
        signs = "".join(sign for sign in signs if sign not in forms)
    safe = re.escape(space + signs) + (f"{_FIRST_IDEOGRAPH}-{_LAST_IDEOGRAPH}" if ideographs else "")
    return re.compile(f"[{safe}]") if safe else None


def pieces(text: str, safe: re.Pattern[str] | None) -> Iterator[tuple[int, str]]:
    """Cut a text into pieces of about `PIECE_CHARS` characters: (place of its first character, piece)."""
    begin = 0
    while safe is not None and len(text) - begin > PIECE_CHARS:
        found = safe.search(text, begin + PIECE_CHARS - 1)
        if found is None:
            break
        yield begin, text[begin : found.end()]
        begin = found.end()
    # An empty rest is no piece, unless it is the whole text.
    if begin < len(text) or begin == 0:
        yield begin, text[begin:]


def _cleans_like_bert(made: tokenizers.Tokenizer) -> bool | None:
    """Whether a tokenizer that cleans and splits like BERT sets ideographs apart; None: it works otherwise."""
    if not isinstance(made.pre_tokenizer, pre_tokenizers.BertPreTokenizer):
        return None
    steps = [made.normalizer]
    if isinstance(made.normalizer, normalizers.Sequence):
        steps = [made.normalizer[index] for index in range(len(made.normalizer))]
    if not all(isinstance(step, normalizers.BertNormalizer | normalizers.Lowercase | None) for step in steps):
        return None
    return any(isinstance(step, normalizers.BertNormalizer) and step.handle_chinese_chars for step in steps)
