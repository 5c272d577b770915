"""Laws of encoding: truncation, offsets, prompts, pairs, windows, cuts in huge texts, memory, refusals."""

from __future__ import annotations

import functools
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tokenizers import AddedToken
from transformers import BertTokenizerFast

from raybert.checkpoint.hub import resolve
from raybert.errors import RowError, SettingsError
from raybert.text import pieces as pieces_module
from raybert.text import tokenizer as tokenizer_module
from raybert.text.encoding import Windows
from raybert.text.files import Definition, Options, read_definition
from raybert.text.tokenizer import Tokenizer, problem
from tests.fixtures.record_slow_tokenizer import NEVER_SPLIT, generated_texts
from tests.tiny import stdlib_docstrings, write_json, write_tiny_checkpoint

MINILM = resolve("demo")


@functools.cache
def texts() -> list[str]:
    return stdlib_docstrings(300) + generated_texts()[:700]


@functools.cache
def minilm(max_length: int = 64) -> Tokenizer:
    return Tokenizer.from_files(MINILM, max_length=max_length)


@functools.cache
def reference() -> Any:
    return BertTokenizerFast.from_pretrained(str(MINILM))


def rows(windows: Windows, values: np.ndarray | None = None) -> list[Any]:
    held = (windows.ids if values is None else values).tolist()
    ends = np.cumsum(windows.lengths).tolist()
    return [held[begin:end] for begin, end in zip(windows.starts.tolist(), ends, strict=True)]


def assert_equal(ours: Windows, theirs: Windows) -> None:
    for field in fields(Windows):
        np.testing.assert_array_equal(getattr(ours, field.name), getattr(theirs, field.name), field.name)


def test_fields_have_their_types_and_shapes() -> None:
    got = minilm().encode(texts(), offsets=True)
    n = len(texts())
    assert (got.n_windows, got.lengths.shape, got.tokens.shape) == (n, (n,), (n,))
    assert got.offsets is not None
    assert got.offsets.shape == (len(got.ids), 2)
    assert got.type_ids is None
    dtypes = [got.ids.dtype, got.lengths.dtype, got.row_of_window.dtype, got.tokens.dtype, got.offsets.dtype]
    assert dtypes == [np.int32] * 5
    assert (got.truncated.dtype, got.starts.dtype) == (np.bool_, np.int64)
    assert got.row_of_window.tolist() == list(range(n))


@pytest.mark.parametrize("max_length", [3, 4, 17, 64, 512])
def test_truncation_is_the_references(max_length: int) -> None:
    tokenizer = minilm(max_length)
    got = tokenizer.encode(texts())
    assert rows(got) == reference()(texts(), truncation=True, max_length=max_length)["input_ids"]
    whole = [len(row) for row in reference()(texts())["input_ids"]]
    assert got.tokens.tolist() == tokenizer.count(texts()).tolist() == whole
    assert got.truncated.tolist() == [count > max_length for count in whole]


def test_no_texts_and_texts_without_tokens() -> None:
    empty = minilm().encode([], offsets=True)
    assert (empty.n_windows, len(empty.ids), len(empty.tokens)) == (0, 0, 0)
    assert_equal(minilm().encode([], windows="slide", offsets=True), empty)
    assert minilm().encode_pairs([]).n_windows == 0
    for windows in ("truncate", "slide"):
        nothing = minilm().encode(["", "\x00\x1f", " \n\u3000"], windows=windows, offsets=True)
        assert rows(nothing) == [[minilm().cls_id, minilm().sep_id]] * 3
        assert nothing.tokens.tolist() == [2, 2, 2]


def test_offsets_are_the_references_and_hold_the_pieces() -> None:
    got = minilm(4096).encode(texts(), offsets=True)
    assert got.offsets is not None
    expected = reference()(texts(), return_offsets_mapping=True)
    spans = rows(got, got.offsets)
    assert [[tuple(span) for span in row] for row in spans] == expected["offset_mapping"]
    piece_of = {index: token for token, index in minilm().vocabulary.items()}
    clean = minilm().backend.normalizer.normalize_str
    checked = 0
    for text, ids, row in zip(texts(), rows(got), spans, strict=True):
        for index, (start, end) in zip(ids, row, strict=True):
            if index not in minilm().special_ids:
                piece, surface = piece_of[index].removeprefix("##"), clean(text[start:end]).strip()
                # Taking accents away takes one Hangul syllable apart, into several pieces.
                assert piece == surface or (piece in surface and end - start == 1)
                checked += 1
    assert checked > 30_000


@pytest.mark.parametrize(("max_length", "stride"), [(3, 0), (16, 0), (16, 5), (16, 13), (64, 20)])
def test_slid_windows_are_the_references(max_length: int, stride: int) -> None:
    some = [*texts()[::3], ""]
    got = minilm(max_length).encode(some, windows="slide", stride=stride, offsets=True)
    expected = reference()(
        some,
        truncation=True,
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    assert got.offsets is not None
    assert rows(got) == expected["input_ids"]
    assert [[tuple(span) for span in row] for row in rows(got, got.offsets)] == expected["offset_mapping"]
    assert got.row_of_window.tolist() == expected["overflow_to_sample_mapping"]
    assert not got.truncated.any()
    np.testing.assert_array_equal(got.tokens, minilm().count(some))


@pytest.mark.parametrize("max_length", [4, 5, 8, 9, 33, 512])
def test_pairs_are_the_references(max_length: int) -> None:
    some = [text[:400] for text in texts()[::7]]  # the reference needs minutes for cutting long pairs short
    pairs = [*zip(some, some[::-1], strict=True), ("", ""), ("a", ""), ("", "a b c d e f g h i")]
    got = minilm(max_length).encode_pairs(pairs, offsets=True)
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    expected = reference()(first, second, truncation=True, max_length=max_length, return_offsets_mapping=True)
    assert got.type_ids is not None
    assert got.offsets is not None
    assert rows(got) == expected["input_ids"]
    assert rows(got, got.type_ids) == expected["token_type_ids"]
    assert [[tuple(span) for span in row] for row in rows(got, got.offsets)] == expected["offset_mapping"]
    whole = [len(row) for row in reference()(first, second)["input_ids"]]
    assert got.tokens.tolist() == whole
    assert got.truncated.tolist() == [count > max_length for count in whole]


def test_a_prompt_is_text_before_the_text() -> None:
    some = texts()[::5]
    for prompt in ("query: ", "Represent this, [MASK] and all: ", "pre", "é"):
        got = minilm().encode(some, prompt=prompt, offsets=True)
        plain = minilm().encode([prompt + text for text in some], offsets=True)
        assert got.offsets is not None
        assert plain.offsets is not None
        moved = np.maximum(plain.offsets - len(prompt), 0)
        assert_equal(got, replace(plain, offsets=moved))


@pytest.fixture(scope="module")
def sentence_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(
        tmp_path_factory.mktemp("sentence"),
        tokenizer={"do_lower_case": False},
        sentence={"do_lower_case": True, "max_seq_length": 24, "include_prompt": False},
    )


def test_prompts_and_lower_case_are_sentence_transformers(sentence_folder: Path) -> None:
    oracle = SentenceTransformer(str(sentence_folder), device="cpu")[0]
    tokenizer = Tokenizer.from_files(sentence_folder, max_length=24, lower_case=True)
    prompts = ["query: ", "the", "Ends in [SEP]", "Ends in [MASK] ", "a very long prompt " * 20]
    for prompt in prompts:
        counted = oracle.preprocess(["HELLO World"], prompt=prompt)["prompt_length"]
        assert tokenizer.prompt_tokens(prompt) == counted
    assert tokenizer.prompt_tokens("") == 0
    some = ["HELLO World", "ΣΊΣΥΦΟΣ İstanbul [MASK] [mask] ÀÉ", *texts()[:100]]
    batch = oracle.preprocess(some)
    masks = batch["attention_mask"].bool()
    expected = [ids[mask].tolist() for ids, mask in zip(batch["input_ids"], masks, strict=True)]
    assert rows(tokenizer.encode(some)) == expected
    assert rows(Tokenizer.from_files(sentence_folder, max_length=24).encode(some)) != expected


def cut_cases() -> Iterator[tuple[str, Definition]]:
    """Tokenizers for which other places are safe to cut at."""
    plain = read_definition(MINILM)
    assert plain.options is not None
    yield "plain", plain
    yield "words never split", replace(plain, options=Options(never_split=tuple(NEVER_SPLIT)))
    yield "no basic tokenization", replace(plain, options=Options(do_basic_tokenize=False))
    yield "ideographs inside words", replace(plain, options=Options(tokenize_chinese_chars=False))
    yield "cased, accents", replace(plain, options=Options(do_lower_case=False, strip_accents=False))
    tokens = {
        "spaces inside": AddedToken("two words", normalized=True),
        "takes space": AddedToken("hello", lstrip=True, rstrip=True, normalized=False),
        "single word": AddedToken("World", single_word=True, normalized=True),
        "single word as it is": AddedToken("World", single_word=True, normalized=False),
        "signs": AddedToken("C++", normalized=True),
        "ideographs": AddedToken("中国", normalized=True),
        "ideographs as they are": AddedToken("华人", normalized=False, single_word=True),
    }
    for name, token in tokens.items():
        yield name, replace(plain, extra=(token,))
    yield "all of them", replace(plain, extra=tuple(tokens.values()))


@pytest.mark.parametrize("case", [pytest.param(found, id=name) for name, found in cut_cases()])
def test_in_pieces_and_chunks_as_in_one(monkeypatch: pytest.MonkeyPatch, case: Definition) -> None:
    """However small the pieces that texts go to the library in, ids and offsets stay."""
    whole = Tokenizer(case, max_length=40, lower_case=case.options == Options())
    some = [text[:200] for text in texts()[::3]] + generated_texts()[5000:5500]
    some += ["中World 中,World _World- World中", "hello 中国hello  two words"]
    expected = whole.encode(some, offsets=True, prompt="query: ")
    slid = whole.encode(some, windows="slide", stride=3)
    counts = whole.count(some)
    for piece_chars, chunk_chars, chunk_texts in ((1, 50, 3), (3, 8, 100), (10, 262_144, 512)):
        monkeypatch.setattr(pieces_module, "PIECE_CHARS", piece_chars)
        monkeypatch.setattr(tokenizer_module, "CHUNK_CHARS", chunk_chars)
        monkeypatch.setattr(tokenizer_module, "CHUNK_TEXTS", chunk_texts)
        assert_equal(whole.encode(some, offsets=True, prompt="query: "), expected)
        assert_equal(whole.encode(some, windows="slide", stride=3), slid)
        np.testing.assert_array_equal(whole.count(some), counts)


def test_texts_are_cut_where_it_is_safe_and_only_there(tmp_path: Path) -> None:
    safe = minilm()._safe
    assert safe is not None
    assert all(safe.match(letter) for letter in " \n\t.,-{}+中")
    assert not any(safe.match(letter) for letter in "a9_[]éがא\u0301😀\u00a0")
    text = "word " * 20_000
    cut = list(pieces_module.pieces(text, safe))
    assert "".join(piece for _, piece in cut) == text
    assert [place for place, _ in cut] == [sum(len(piece) for _, piece in cut[:n]) for n in range(len(cut))]
    assert max(len(piece) for _, piece in cut) <= pieces_module.PIECE_CHARS + 5
    assert list(pieces_module.pieces("", safe)) == [(0, "")]
    assert len(list(pieces_module.pieces("x" * 10**6, safe))) == 1
    # A tokenizer.json that stands as it is may be cut only if it is recognisably BERT's.
    folder = write_tiny_checkpoint(tmp_path, tokenizer_json=True)
    (folder / "tokenizer_config.json").unlink()
    stored = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    assert Tokenizer.from_files(folder, max_length=9)._safe is not None
    write_json(folder / "tokenizer.json", stored | {"pre_tokenizer": {"type": "Whitespace"}})
    assert Tokenizer.from_files(folder, max_length=9)._safe is None
    write_json(folder / "tokenizer.json", stored | {"normalizer": {"type": "NFC"}})
    assert Tokenizer.from_files(folder, max_length=9)._safe is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize(("unit", "chars"), [("the quick brown fox, ", 10**7), ('{"key":[1,2]},', 2 * 10**6)])
def test_a_huge_text_in_bounded_memory(unit: str, chars: int) -> None:
    """In one go the library takes 1.2 GB for the first and 0.8 GB for the second."""
    program = f"""
from pathlib import Path
from raybert.text.tokenizer import Tokenizer
tokenizer = Tokenizer.from_files(Path({str(MINILM)!r}), max_length=256)
windows = tokenizer.encode([{unit!r} * ({chars} // {len(unit)})])
assert windows.lengths.tolist() == [256] and windows.tokens[0] > 10**6
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 250_000, "kB"


def test_pickled_it_is_the_same_tokenizer() -> None:
    """Ray carries it between processes; words of never_split must survive that."""
    definition = read_definition(MINILM)
    for options in (Options(), Options(never_split=tuple(NEVER_SPLIT))):
        tokenizer = Tokenizer(replace(definition, options=options), max_length=40)
        again = pickle.loads(pickle.dumps(tokenizer))
        assert_equal(again.encode(texts(), offsets=True), tokenizer.encode(texts(), offsets=True))


@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        (None, "null", "the text is missing"),
        (17, "wrong_type", "expected a text, got int"),
        (b"bytes", "wrong_type", "got bytes"),
        ("ab\ud800c", "lone_surrogate", r"character 2 is U\+D800"),
        ("\udfff", "lone_surrogate", r"character 0 is U\+DFFF"),
    ],
)
def test_what_can_not_be_tokenized_is_named(value: Any, reason: str, detail: str) -> None:
    found = problem(value)
    assert found is not None
    assert found[0] == reason
    for call in (
        lambda: minilm().encode(["fine", value]),
        lambda: minilm().count(["fine", value]),
        lambda: minilm().encode_pairs([("fine", "too"), ("fine", value)]),
    ):
        with pytest.raises(RowError, match=f"^row 1: .*{detail}") as caught:
            call()
        assert (caught.value.row, caught.value.reason) == (1, reason)


def test_any_other_text_is_fine() -> None:
    assert [text for text in texts() if problem(text) is not None] == []
    assert problem("a" * 10**6 + "\U0010ffff\x00") is None


def test_wrong_calls() -> None:
    with pytest.raises(TypeError, match=r"pass \[text\]"):
        minilm().encode("one text")
    with pytest.raises(RowError, match="row 0: expected a pair of texts, got str"):
        minilm().encode_pairs(["ab"])  # type: ignore[list-item]
    with pytest.raises(RowError, match="row 1: expected a pair"):
        minilm().encode_pairs([("a", "b"), ("a", "b", "c")])  # type: ignore[list-item]
    with pytest.raises(SettingsError, match="stride: 62 is outside 0 to 61"):
        minilm().encode(["a"], windows="slide", stride=62)
