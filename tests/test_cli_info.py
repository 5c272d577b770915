"""``raybert info``: what a checkpoint holds, as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import raybert
from raybert.checkpoint.digest import trunk_digest
from raybert.checkpoint.folder import open_checkpoint
from raybert.model.architecture import BertModel
from tests.commands import Cli, assert_one_line, cli_fixture  # noqa: F401
from tests.tiny import tiny_config, tiny_tensors, write_json, write_tiny_checkpoint
from tests.vectors import one_thread_a_module  # noqa: F401  a fixture


def facts_of(cli: Cli, model: Path | str) -> dict[str, Any]:
    outcome = cli("info", str(model), "--json")
    assert (outcome.code, outcome.err) == (0, "")
    facts = json.loads(outcome.out)
    assert isinstance(facts, dict)
    return facts


def test_a_plain_folder(cli: Cli, tiny: Path) -> None:
    facts = facts_of(cli, tiny)
    parameters = sum(parameter.numel() for parameter in BertModel.from_pretrained(tiny).parameters())
    assert facts == {
        "model": tiny.name,
        "path": str(tiny),
        "architecture": "bert, 2 layers, width 32, 4 heads, feed-forward 64, gelu",
        "vocabulary": 2000,
        "max_length": 128,
        "heads": ["pooler"],
        "parameters": parameters,
        "bytes": 4 * parameters,
        "dtypes": ["float32"],
        "weights": ["model.safetensors"],
        "trunk": trunk_digest(open_checkpoint(tiny)),
        "embed_dimensions": 32,
        "fingerprint": facts["fingerprint"],
    }
    for dtype, fingerprint in facts["fingerprint"].items():
        if dtype == "float32":
            with raybert.load(str(tiny), "embed", dtype=dtype, threads=1) as embed:
                assert embed.fingerprint == fingerprint
        assert len(fingerprint) == 64


def test_text_says_the_same_as_json(cli: Cli, tiny: Path) -> None:
    facts = facts_of(cli, tiny)
    outcome = cli("info", str(tiny))
    assert (outcome.code, outcome.err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    assert lines.keys() == facts.keys()
    for name, value in facts.items():
        assert lines[name] == (value if isinstance(value, str | int) else json.dumps(value)) or lines[name] == str(
            value
        )
    assert len({line.index(lines[line.split()[0]]) for line in outcome.out.splitlines()}) == 1, (
        "values stand in a column"
    )


ALL = ("masked-lm", "next-sentence", "classifier", "qa")


@pytest.mark.parametrize("heads", [(), ("qa",), ("masked-lm", "next-sentence"), ALL], ids=str)
@pytest.mark.parametrize("pooler", [True, False])
def test_heads_that_are_found(cli: Cli, tmp_path: Path, heads: tuple[str, ...], pooler: bool) -> None:
    facts = facts_of(cli, write_tiny_checkpoint(tmp_path, heads=heads, pooler=pooler))
    assert facts["heads"] == [*sorted(heads), *(["pooler"] if pooler else [])]
    assert facts.get("labels") == (["LABEL_0", "LABEL_1"] if "classifier" in heads else None)
    tensors = tiny_tensors(tiny_config(), heads=heads, pooler=pooler)
    assert facts["parameters"] == sum(tensor.size for tensor in tensors.values())


def test_the_trunks_digest_is_its_own(cli: Cli, tmp_path: Path, tiny: Path) -> None:
    # One seed gives one trunk, whatever stands beside it; another seed another.
    with_heads = facts_of(cli, write_tiny_checkpoint(tmp_path / "a", heads=ALL, shards=3))
    other = facts_of(cli, write_tiny_checkpoint(tmp_path / "b", seed=1))
    assert with_heads["trunk"] == facts_of(cli, tiny)["trunk"] != other["trunk"]
    assert len(with_heads["weights"]) == 3


def test_a_sentence_folder(cli: Cli, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(
        tmp_path,
        sentence={
            "pooling": ["cls", "mean"],
            "dense": [{"out_features": 12}],
            "normalize": True,
            "max_seq_length": 40,
            "prompts": {"query": "q: ", "doc": "d: "},
        },
    )
    facts = facts_of(cli, folder)
    assert facts["embeddings"] == ["Pooling cls+mean", "Dense 64->12 tanh", "Normalize"]
    assert facts["prompts"] == ["doc", "query"]
    assert facts["embed_dimensions"] == 12
    assert facts["max_length"] == 40


def test_modules_that_cannot_be_honoured_are_told(cli: Cli, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, heads=("classifier",), sentence={})
    rows = json.loads((folder / "modules.json").read_text())
    rows.append({"idx": 2, "name": "2", "path": "2_LSTM", "type": "sentence_transformers.models.LSTM"})
    write_json(folder / "modules.json", rows)
    facts = facts_of(cli, folder)
    assert facts["heads"] == ["classifier", "pooler"]
    assert facts["embeddings"].startswith("none: ")
    assert "LSTM" in facts["embeddings"]
    assert "fingerprint" not in facts


def test_the_demo_model(cli: Cli) -> None:
    facts = facts_of(cli, "demo")
    assert facts["model"] == "demo"
    assert facts["parameters"] == 22_713_216  # its file also holds 512 positions, which are no parameters
    assert facts["embeddings"] == ["Pooling mean", "Normalize"]
    assert facts["max_length"] == 256


def broken_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def other_type(folder: Path) -> None:
    write_json(folder / "config.json", tiny_config(model_type="roberta"))


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize("damage", [broken_weights, no_weights, no_config, other_type, no_json])
def test_damage_is_one_line(cli: Cli, tmp_path: Path, damage: Any) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model")
    damage(folder)
    outcome = cli("info", str(folder))
    assert_one_line(outcome, 2)
    assert str(folder) in outcome.err


def test_a_model_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("info", str(tmp_path / "nothing"))
    assert_one_line(outcome, 2)
    assert "no such folder" in outcome.err
