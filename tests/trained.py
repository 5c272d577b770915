"""A token-classification checkpoint that the tests train themselves, on real text, and sentences to try it on.

    folder = train(tmp_path)  # a minute; the fixture ``trained_ner`` (conftest.py) is one made once a session
    found = raybert.load(folder, "ner", dtype="float32", device="cpu")(sentences())
    guard(found, sentences())  # there is something to compare

Texts are sentences of the standard library's docstrings; exceptions, modules, classes and constants in them are
found by name (weak labels). MiniLM learns them from every other docstring, its embeddings and lower layers as they
are; `sentences` are of the other docstrings. No random numbers but the head's and the batches' order, both seeded.
"""

from __future__ import annotations

import builtins
import functools
import re
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

import raybert
from tests.tiny import python_files, stdlib_docstrings

TYPES = ("EXC", "MOD", "CLS", "CONST")
TAGS = ("O", *(f"{begin}-{name}" for name in TYPES for begin in "BI"))
MODEL_LENGTH = 512

_EPOCHS = 2
_FROZEN_LAYERS = 4
_RATE = 1e-3
_ROWS = 16
_TRAINED_LENGTH = 48
_MOST_SECONDS = 120.0

_SINGLETONS = ("True", "False", "None")
_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_EXCEPTION_ENDS = ("Error", "Exception", "Warning")
_CLASS = re.compile(r"^[ \t]*class +(\w+)", re.MULTILINE)
_CONSTANT = re.compile(r"^[ \t]*([A-Z][A-Z0-9_]+) *=(?!=)", re.MULTILINE)
_SENTENCE_END = re.compile(r"\n\s*\n|(?<=[.!?:])\s+(?=[A-Z])")
_SAID_TO_BE_A_MODULE = re.compile(r"\W{0,2}\s+(?:module|package|library)\b")


class Found(Protocol):
    """What `guard` reads of an entity: `Span` and raybert's ``Entity`` have it."""

    @property
    def label(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...


class Span(NamedTuple):
    """An entity in a text, by code points, end exclusive."""

    label: str
    start: int
    end: int


class Labelled(NamedTuple):
    """A sentence and its weak labels."""

    text: str
    spans: list[Span]


class Names(NamedTuple):
    """What the standard library calls its modules, and the labels of the names of other things."""

    modules: frozenset[str]
    label: dict[str, str]


def train(folder: Path) -> Path:
    """Train the checkpoint, save model and tokenizer into `folder`, and return it; under two minutes of one core."""
    batches = _batches(_for_training())
    threads, began = torch.get_num_threads(), time.process_time()
    torch.set_num_threads(1)  # sums depend on it; and two would wait for one another where others use the machine
    try:
        model = _begin()
        _learn(model, batches)
    finally:
        torch.set_num_threads(threads)
    # Of the processor, not of the clock: others may use the machine meanwhile.
    used = time.process_time() - began
    assert used < _MOST_SECONDS, f"training took {used:.0f} s of processor time"
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def sentences() -> list[str]:
    """Sentences that the checkpoint has not seen, most with entities, each within the model's length."""
    return [sentence.text for sentence in _for_trial()]


def weak_spans() -> list[list[Span]]:
    """The weak labels of `sentences`."""
    return [sentence.spans for sentence in _for_trial()]


def agreement(found: Sequence[Sequence[Found]]) -> float:
    """F1 of entities found in `sentences` on their weak labels; label and both ends must be right."""
    ours = {(row, e.label, e.start, e.end) for row, entities in enumerate(found) for e in entities}
    weak = {(row, *span) for row, spans in enumerate(weak_spans()) for span in spans}
    return 2 * len(ours & weak) / (len(ours) + len(weak))


def counts(found: Sequence[Sequence[Found]], texts: Sequence[str]) -> dict[str, int]:
    """How many entities there are: "all", by label, of "several" tokens, with a "lower-case" or "punctuation" seam.

    A seam is where two tokens of an entity meet, the second beginning with a lower-case letter (``Key|Er|ror``, not
    ``Key|Error``), or one of them being punctuation inside the entity (``os|.|path``, ``LC|_|ALL``).
    """
    told: Counter[str] = Counter()
    tokenized = _tokenizer()(list(texts), return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    for entities, text, offsets in zip(found, texts, tokenized, strict=True):
        for entity in entities:
            pieces = [text[a:b] for a, b in offsets if entity.start <= a < entity.end]
            told["all"] += 1
            told[entity.label] += 1
            told["several"] += len(pieces) > 1
            told["lower-case"] += any(piece[:1].islower() for piece in pieces[1:])
            told["punctuation"] += len(pieces) > 1 and any(not piece[:1].isalnum() for piece in pieces[1:-1])
    return dict(told)


def guard(found: Sequence[Sequence[Found]], texts: Sequence[str]) -> dict[str, int]:
    """Refuse a comparison that says little, as that of a model which finds nothing would; return `counts`."""
    told = counts(found, texts)
    lowest = {"all": 2000, "several": 200, "lower-case": 50, "punctuation": 50} | dict.fromkeys(TYPES, 50)
    few = {what: told.get(what, 0) for what, least in lowest.items() if told.get(what, 0) < least}
    assert len(set(texts)) >= 500, f"{len(set(texts))} sentences"
    assert not few, f"too few entities: {few} of {told}"
    return told


# Texts and their weak labels.


@functools.cache
def _halves() -> tuple[list[Labelled], list[Labelled]]:
    """Labelled sentences of every other docstring, and of the others; no sentence twice."""
    halves: tuple[list[Labelled], list[Labelled]] = ([], [])
    seen = set()
    for number, docstring in enumerate(stdlib_docstrings()):
        for part in _SENTENCE_END.split(docstring):
            text = part.strip()
            if text not in seen and len(text.split()) >= 3:
                seen.add(text)
                halves[number % 2].append(Labelled(text, list(_spans(text))))
    return halves


def _some(half: list[Labelled], *, step: int) -> list[Labelled]:
    """All sentences that have entities, and of the others one in `step`."""
    without = [sentence for sentence in half if not sentence.spans]
    return [sentence for sentence in half if sentence.spans] + without[::step]


def _for_training() -> list[Labelled]:
    return _some(_halves()[0], step=20)


@functools.cache
def _for_trial() -> list[Labelled]:
    chosen = _some(_halves()[1], step=20)
    lengths = [len(ids) for ids in _tokenizer()([sentence.text for sentence in chosen])["input_ids"]]
    return [sentence for sentence, length in zip(chosen, lengths, strict=True) if length <= MODEL_LENGTH]


def _spans(text: str) -> Iterator[Span]:
    for match in _NAME.finditer(text):
        label = _label(match.group(), text[match.end() :])
        if label:
            yield Span(label, *match.span())


def _label(name: str, behind: str) -> str | None:
    if name in _SINGLETONS:
        return "CONST"
    label = _names().label.get(name.rpartition(".")[2])
    # MiniLM reads no capitals: "NOT" and "Exception" are words like others to it.
    if label and name.lower() not in _plain_words():
        return label
    return "MOD" if _is_of_module(name, behind) else None


def _is_of_module(name: str, behind: str) -> bool:
    """Whether a name is a module's, or begins with one: sys.stdout; a lone English word is one if the text says so."""
    parts = name.split(".")
    if len(parts) == 1 and name in _known_words():
        return name in _names().modules and _SAID_TO_BE_A_MODULE.match(behind) is not None
    return any(".".join(parts[:size]) in _names().modules for size in range(1, len(parts) + 1))


@functools.cache
def _known_words() -> frozenset[str]:
    """Words that MiniLM knows whole."""
    return frozenset(_tokenizer().get_vocab())


@functools.cache
def _plain_words() -> frozenset[str]:
    """Words that docstrings have in lower case."""
    return frozenset(re.findall(r"(?<![\w.])[a-z]+(?![\w.(])", "\n".join(stdlib_docstrings())))


@functools.cache
def _names() -> Names:
    folder = Path(sysconfig.get_paths()["stdlib"])
    modules, classes, constants = set(sys.stdlib_module_names), set(), set()
    for path in python_files(folder):
        parts = path.relative_to(folder).with_suffix("").parts
        modules.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
        source = path.read_text(encoding="utf-8", errors="replace")
        classes.update(_CLASS.findall(source))
        constants.update(_CONSTANT.findall(source))
    label = dict.fromkeys(constants, "CONST")
    label |= {name: "CLS" for name in classes if re.search(r"[A-Z].*[a-z]", name)}
    label |= {name: "EXC" for name in classes if name.endswith(_EXCEPTION_ENDS)}
    label |= {name: "EXC" for name in dir(builtins) if _is_exception(getattr(builtins, name))}
    listed = {name for name in modules - {"this"} if not name.startswith("_") and "._" not in name}
    return Names(frozenset(listed), label)


def _is_exception(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


# Training.


@functools.cache
def _tokenizer() -> raybert.BertTokenizerFast:
    return raybert.BertTokenizerFast.from_pretrained("demo")


def _begin() -> raybert.BertForTokenClassification:
    """MiniLM with a new head; it stays in eval mode, without dropout."""
    labels = {"id2label": dict(enumerate(TAGS)), "label2id": {tag: number for number, tag in enumerate(TAGS)}}
    model = raybert.BertForTokenClassification.from_pretrained("demo", new_head=True, seed=0, **labels)
    for part in (model.bert.embeddings, *model.bert.encoder.layer[:_FROZEN_LAYERS]):
        part.requires_grad_(False)
    return model


def _batches(labelled: Sequence[Labelled]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Ids, mask and labels [B, S], sentences of like lengths together."""
    encoded = _tokenizer()(
        [sentence.text for sentence in labelled],
        truncation=True,
        max_length=_TRAINED_LENGTH,
        return_offsets_mapping=True,
    )
    tagged = map(_tagged, encoded["offset_mapping"], labelled)
    rows = sorted(zip(encoded["input_ids"], tagged, strict=True), key=lambda row: len(row[0]))
    batches = []
    for begin in range(0, len(rows), _ROWS):
        ids, labels = zip(*rows[begin : begin + _ROWS], strict=True)
        mask = [[1] * len(row) for row in ids]
        batches.append((_filled(ids, 0), _filled(mask, 0), _filled(labels, -100)))
    return batches


def _tagged(offsets: Sequence[tuple[int, int]], labelled: Labelled) -> list[int]:
    """The label of each token; none at [CLS] and [SEP], which take no characters."""
    tags = []
    for start, end in offsets:
        around = [span for span in labelled.spans if span.start <= start < span.end]
        if start == end:
            tags.append(-100)
        elif around:
            tags.append(TAGS.index(f"{'B' if around[0].start == start else 'I'}-{around[0].label}"))
        else:
            tags.append(TAGS.index("O"))
    return tags


def _filled(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def _learn(model: raybert.BertForTokenClassification, batches: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
    """AdamW, the rate rising for 20 steps and falling to nothing."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=_RATE)
    order = torch.Generator().manual_seed(0)
    steps = _EPOCHS * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 20) * (1 - step / steps))
    for _ in range(_EPOCHS):
        for number in torch.randperm(len(batches), generator=order).tolist():
            ids, mask, labels = batches[number]
            model(ids, mask, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
