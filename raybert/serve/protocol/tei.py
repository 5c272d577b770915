"""text-embeddings-inference's API, as its clients send and read it (router/src/http/types.rs of version 1.9).

Beside its fields each body may name a ``model``; without one the first served head of the route's kind answers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictBool, StrictInt, StrictStr, model_validator

from raybert.serve.faults import Fault, ServiceError
from raybert.serve.service import Item, TokenIds
from raybert.tasks import Task
from raybert.tasks.classify import Classification
from raybert.tasks.embed_tokens import SparseVector
from raybert.tasks.rerank import Ranked
from raybert.text.ids import check_ids
from raybert.text.tokenizer import Tokenizer

Ids = Annotated[list[StrictInt], Field(min_length=1)]
Model = Annotated[StrictStr | None, Field(description="A served head; the first of its kind if left out.")]
ONE = ["a text"]


class Cut(BaseModel):
    """What all say of texts that are too long."""

    model: Model = None
    truncate: StrictBool | None = Field(
        default=None, description="Whether too long a text is cut, or the request refused; the server's way if null."
    )
    truncation_direction: Literal["Left", "Right", "left", "right"] = Field(
        default="Right", description="Which end is cut off."
    )

    @property
    def side(self) -> str | None:
        """The option that this is; None where it's the usual one."""
        return "left" if self.truncation_direction.lower() == "left" else None


class Inputs(Cut):
    """Texts, each as it is or as token ids."""

    inputs: StrictStr | Ids | list[StrictStr | Ids] = Field(examples=["a text", ["a text", "another"]])
    prompt_name: StrictStr | None = Field(default=None, description="One of the model's prompts, put before each.")

    def items(self) -> list[Item]:
        """One for each answer."""
        if isinstance(self.inputs, str):
            return [self.inputs]
        ids = [each for each in self.inputs if isinstance(each, int)]
        if ids:
            return [TokenIds(ids)]
        return [TokenIds(each) if isinstance(each, list) else str(each) for each in self.inputs]


class EmbedRequest(Inputs):
    """Body of ``POST /embed``."""

    normalize: StrictBool = True
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = None


class PredictRequest(Cut):
    """Body of ``POST /predict``: a text, a pair ``[a, b]``, or a list of lists of one or two texts."""

    inputs: StrictStr | list[StrictStr] | list[list[StrictStr]] = Field(
        examples=["a text", ["a text", "its pair"], [["a text"], ["another"]]]
    )
    raw_scores: StrictBool = False

    @property
    def is_batch(self) -> bool:
        """Whether an answer for each is meant, and not one answer."""
        return isinstance(self.inputs, list) and not all(isinstance(each, str) for each in self.inputs)

    def items(self) -> list[Item]:
        """One for each answer.

        Raises:
            ServiceError: one is neither a text nor a pair.
        """
        if isinstance(self.inputs, str):
            return [self.inputs]
        if not self.is_batch:
            return [_one_or_two([str(each) for each in self.inputs], "inputs")] if self.inputs else []
        lists = [each for each in self.inputs if isinstance(each, list)]
        return [_one_or_two(each, f"inputs[{at}]") for at, each in enumerate(lists)]


def _one_or_two(texts: list[str], place: str) -> Item:
    if len(texts) == 1:
        return texts[0]
    if len(texts) == 2:
        return (texts[0], texts[1])
    raise ServiceError(Fault.INVALID, f"{place}: {len(texts)} texts; give one, or the two of a pair", param="inputs")


class RerankRequest(Cut):
    """Body of ``POST /rerank`` with ``texts``."""

    query: StrictStr
    texts: list[StrictStr]
    raw_scores: StrictBool = False
    return_text: StrictBool = False


class SimilarityInputs(BaseModel):
    """One text and those that it is compared with."""

    source_sentence: StrictStr
    sentences: list[StrictStr]


class SimilarityParameters(Cut):
    """Options of ``POST /similarity``."""

    prompt_name: StrictStr | None = None


class SimilarityRequest(BaseModel):
    """Body of ``POST /similarity``."""

    model: Model = None
    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None


class TokenizeRequest(BaseModel):
    """Body of ``POST /tokenize``."""

    model: Model = None
    inputs: StrictStr | list[StrictStr] = Field(examples=ONE)
    add_special_tokens: StrictBool = True
    prompt_name: StrictStr | None = None

    def texts(self) -> list[str]:
        """One for each list of tokens."""
        return [self.inputs] if isinstance(self.inputs, str) else [str(each) for each in self.inputs]


class DecodeRequest(BaseModel):
    """Body of ``POST /decode``."""

    model: Model = None
    ids: Ids | list[list[StrictInt]] = Field(examples=[[101, 1037, 3793, 102]])
    skip_special_tokens: StrictBool = True

    def rows(self) -> list[list[int]]:
        """One for each text."""
        flat = [each for each in self.ids if isinstance(each, int)]
        return [flat] if flat else [list(each) for each in self.ids if isinstance(each, list)]


class Token(BaseModel):
    """One of ``POST /tokenize``; special tokens have no place in the text."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Score(BaseModel):
    """One label of ``POST /predict``."""

    score: float
    label: str


class Rank(BaseModel):
    """One text of ``POST /rerank``, best first."""

    index: int
    score: float
    text: str | None = None


class Weight(BaseModel):
    """One word of ``POST /embed_sparse``."""

    index: int
    value: float


def scores(answer: Classification) -> list[dict[str, Any]]:
    """All labels, highest score first."""
    return [{"score": score, "label": label} for label, score in answer.scores.items()]


def ranks(ranked: list[Ranked], request: RerankRequest) -> list[dict[str, Any]]:
    """All texts, best first: a client may count on each."""
    found: list[dict[str, Any]] = [{"index": each.index, "score": each.score} for each in ranked]
    if request.return_text:
        for each in found:
            each["text"] = request.texts[each["index"]]
    return found


def weights(answer: SparseVector) -> list[dict[str, Any]]:
    """The words of a text."""
    pairs = zip(answer.ids.tolist(), answer.weights.tolist(), strict=True)
    return [{"index": index, "value": value} for index, value in pairs]


def tokens(request: TokenizeRequest, task: Task) -> list[list[dict[str, Any]]]:
    """The whole tokens of each text, none cut off.

    Raises:
        RowError: a text is none.
    """
    tokenizer = task.tokenizer()
    taken = tokenizer.take(request.texts(), prompt=task.prompt, offsets=True, whole=True)
    assert taken.offsets is not None
    found, begin = [], 0
    for text, count in zip(request.texts(), taken.counts.tolist(), strict=True):
        places = taken.offsets[begin : begin + count].tolist()
        ids = taken.ids[begin : begin + count].tolist()
        inner = [_token(tokenizer, number, text, *place) for number, place in zip(ids, places, strict=True)]
        if request.add_special_tokens:
            inner = [_special(tokenizer, tokenizer.cls_id), *inner, _special(tokenizer, tokenizer.sep_id)]
        found.append(inner)
        begin += count
    return found


def _token(tokenizer: Tokenizer, number: int, text: str, start: int, stop: int) -> dict[str, Any]:
    said = text[start:stop] if stop > start else tokenizer.pieces[number]  # of a prompt: as the vocabulary has it
    return {"id": number, "text": said, "special": False, "start": start, "stop": stop}


def _special(tokenizer: Tokenizer, number: int) -> dict[str, Any]:
    return {"id": number, "text": tokenizer.pieces[number], "special": True, "start": None, "stop": None}


def texts(request: DecodeRequest, task: Task) -> list[str]:
    """The text of each list of ids.

    Raises:
        RowError: an id that the vocabulary does not have.
    """
    tokenizer = task.tokenizer()
    for row, ids in enumerate(request.rows()):
        check_ids(tokenizer, row, ids)
    return [tokenizer.text_of(ids, skip_special=request.skip_special_tokens) for ids in request.rows()]


class RerankBody(Cut):
    """Body of ``POST /rerank``: with ``texts`` as text-embeddings-inference has it, with ``documents`` as Cohere."""

    query: StrictStr
    texts: list[StrictStr] | None = None
    documents: list[Any] | None = None
    raw_scores: StrictBool = False
    return_text: StrictBool = False
    top_n: Annotated[StrictInt, Field(ge=1)] | None = None
    return_documents: StrictBool | None = None
    max_tokens_per_doc: Annotated[StrictInt, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> RerankBody:
        if (self.texts is None) == (self.documents is None):
            raise ValueError("give either texts or documents")
        return self
