"""The tables of names, against the reference's modules."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig as ReferenceConfig
from transformers import BertForPreTraining, BertForQuestionAnswering, BertForTokenClassification, BertLMHeadModel
from transformers import BertModel as ReferenceModel

from raybert.checkpoint import names
from raybert.checkpoint.config import BertConfig
from raybert.errors import CheckpointError
from tests.tiny import tiny_config

ALL_NAMES = [
    *names.trunk_names(BertConfig(**tiny_config(is_decoder=True, add_cross_attention=True))),
    *names.trunk_names(BertConfig(**tiny_config(position_embedding_type="relative_key"))),
    *names.POOLER,
    *names.BUFFERS,
    *(name for family in names.HEADS.values() for name in family),
]


def shapes_of(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def split(shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, tuple[int, ...]], set[str | None]]:
    """The trunk and pooler of a headed model, and the families of everything else."""
    inside = {name: shape for name, shape in shapes.items() if names.is_trunk(name) or names.is_pooler(name)}
    return inside, {names.head_of(name) for name in shapes if name not in inside}


@pytest.mark.parametrize(
    ("model_class", "change", "families", "pooler"),
    [
        (BertForPreTraining, {}, {"masked-lm", "next-sentence"}, True),
        (BertForTokenClassification, {}, {"classifier"}, False),
        (BertForQuestionAnswering, {}, {"qa"}, False),
        (BertLMHeadModel, {"is_decoder": True, "add_cross_attention": True}, {"masked-lm"}, False),
    ],
)
def test_every_name_and_shape_of_the_reference(
    model_class: Any, change: dict[str, Any], families: set[str], *, pooler: bool
) -> None:
    settings = tiny_config(**change)
    inside, heads = split(shapes_of(model_class(ReferenceConfig(**settings))))
    config = BertConfig(**settings)
    wanted = names.trunk_names(config) | (names.pooler_names(config) if pooler else {})
    assert inside == wanted
    assert heads == families


def test_bare_names_of_a_lone_model() -> None:
    shapes = shapes_of(ReferenceModel(ReferenceConfig(**tiny_config())))
    config = BertConfig(**tiny_config())
    assert list(shapes) == [names.bare(name) for name in names.trunk_names(config) | names.pooler_names(config)]
    assert set(names.canonical_names(shapes)) == {*names.trunk_names(config), *names.POOLER}


def test_relative_positions_add_one_table_a_layer() -> None:
    plain = names.trunk_names(BertConfig(**tiny_config()))
    relative = names.trunk_names(BertConfig(**tiny_config(position_embedding_type="relative_key_query")))
    added = {name: shape for name, shape in relative.items() if name not in plain}
    assert added == {f"bert.encoder.layer.{n}.attention.self.distance_embedding.weight": (255, 8) for n in range(2)}


@pytest.mark.parametrize("name", sorted(ALL_NAMES))
def test_canonical_names_stay_and_every_old_spelling_leads_to_them(name: str) -> None:
    assert names.canonical(name) == name
    assert names.canonical(names.bare(name)) == name
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    assert names.canonical(old) == name
    assert names.canonical(names.bare(old)) == name


@pytest.mark.parametrize("name", sorted(ALL_NAMES))
def test_a_name_is_exactly_one_thing(name: str) -> None:
    kinds = [names.is_trunk(name), names.is_pooler(name), names.is_buffer(name), names.head_of(name) is not None]
    assert sum(kinds) == 1


@given(st.sets(st.sampled_from(ALL_NAMES), min_size=1), st.booleans(), st.booleans(), st.booleans())
def test_any_mixture_maps_there_and_back(chosen: set[str], bare: bool, parallel: bool, old: bool) -> None:
    spelt = {}
    for name in sorted(chosen):
        spelling = names.bare(name) if bare else name
        if old:
            spelling = spelling.replace("LayerNorm.weight", "LayerNorm.gamma")
        spelt["module." * parallel + spelling] = name
    assert names.canonical_names(spelt) == {name: spelling for spelling, name in spelt.items()}


def test_names_that_mean_one_tensor_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"both mean 'bert\.pooler\.dense\.bias'"):
        names.canonical_names(["pooler.dense.bias", "bert.pooler.dense.bias"])


def test_module_is_dropped_only_when_every_name_has_it() -> None:
    mixed = ["module.pooler.dense.bias", "classifier.bias"]
    assert set(names.canonical_names(mixed)) == set(mixed)
    assert names.canonical_names([]) == {}


def test_unknown_names_stay_unknown() -> None:
    for name in ("lstm.weight", "classifier.dense.weight", "cls.other", "qa_outputs.extra"):
        assert names.canonical(name) == name
        assert names.head_of(name) is None
        assert not names.is_trunk(name)
