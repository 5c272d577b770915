"""Patterns and lists of inputs: what is found, under which names, and what stays the same when the list grows."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybert.config import HeadSpec
from raybert.data import manifest as manifests
from raybert.data.files import Inputs, input_root, list_inputs
from raybert.data.globs import common_folder, matches, split_pattern, split_query
from raybert.data.plan import Options, Plan, make_plan
from raybert.errors import InputError, SettingsError
from tests.s3 import moto_server

FILES = ("a.jsonl", "b.jsonl.gz", "x/a.jsonl", "x/y/a.jsonl", "x/y/n.log", "_t/a.jsonl", "x/.h/a.jsonl", "z/README.md")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'{"text": "a"}\n' if path.suffix != ".gz" else gzip.compress(b'{"text": "a"}\n'))
    return tmp_path / "in"


def paths(inputs: Inputs) -> list[str]:
    return [file.path for file in inputs.files]


def refusal(uris: str | Sequence[str], input_format: str = "auto") -> str:
    with pytest.raises(InputError) as caught:
        list_inputs(uris, input_format)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "root", "expected"),
    [
        ("*.jsonl", "", ["a.jsonl"]),
        ("*.jsonl*", "", ["a.jsonl", "b.jsonl.gz"]),
        ("?.jsonl", "", ["a.jsonl"]),
        ("[b-z]*", "", ["b.jsonl.gz", "x/a.jsonl", "x/y/a.jsonl"]),
        ("x/*", "/x", ["a.jsonl", "y/a.jsonl"]),
        ("*/a.jsonl", "", ["x/a.jsonl"]),
        ("**/a.jsonl", "", ["a.jsonl", "x/a.jsonl", "x/y/a.jsonl"]),
        ("**", "", ["a.jsonl", "b.jsonl.gz", "x/a.jsonl", "x/y/a.jsonl"]),
        ("x/**/y/*", "/x", ["y/a.jsonl"]),
        ("_*/*", "", ["_t/a.jsonl"]),
        ("x/.h/*", "/x/.h", ["a.jsonl"]),
    ],
)
def test_patterns(folder: Path, pattern: str, root: str, expected: list[str]) -> None:
    inputs = list_inputs(f"{folder}/{pattern}")
    assert paths(inputs) == expected
    assert (inputs.root.uri, inputs.root.is_file) == (f"{folder}{root}", False)
    assert all(Path(inputs.root.show(file)).is_file() for file in inputs.files)


def test_a_pattern_that_spells_an_extension_needs_no_known_one(folder: Path) -> None:
    assert paths(list_inputs(f"{folder}/**/*.log", "text")) == ["x/y/n.log"]
    assert refusal(f"{folder}/**/*.log").endswith("it holds 1 x .log")
    assert paths(list_inputs([f"{folder}/x/y/n.log", f"{folder}/z/README.md"], "text")) == ["x/y/n.log", "z/README.md"]
    assert paths(list_inputs(f"{folder}/x/y/*", "jsonl")) == ["a.jsonl"]


def test_a_pattern_that_matches_nothing_is_named(folder: Path) -> None:
    assert refusal(f"{folder}/*.csv") == f"{folder}/*.csv: the pattern matches no file"
    assert refusal([f"{folder}/a.jsonl", f"{folder}/q*"]) == f"{folder}/q*: the pattern matches no file"
    assert refusal(f"{folder}/no/*.csv") == f"{folder}/no/*.csv: no such file or folder"
    assert refusal([f"{folder}/a.jsonl", f"{folder}/q"]) == f"{folder}/q: no such file or folder"


def test_a_path_that_exists_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "[a]*").mkdir()
    (tmp_path / "[a]*" / "b?.txt").write_text("x\n")
    assert paths(list_inputs(str(tmp_path / "[a]*"))) == ["b?.txt"]
    assert list_inputs(str(tmp_path / "[a]*" / "b?.txt")).root.is_file


def test_a_list_lies_below_the_folder_above_all_and_counts_a_file_once(folder: Path) -> None:
    inputs = list_inputs([f"{folder}/x/y", f"{folder}/x/**/a.jsonl", f"{folder}/x/y/a.jsonl", f"{folder}/b.jsonl.gz"])
    assert paths(inputs) == ["b.jsonl.gz", "x/a.jsonl", "x/y/a.jsonl"]
    assert inputs.root.uri == str(folder)
    assert [file.number for file in inputs.files] == [0, 1, 2]
    assert list_inputs([str(folder / "a.jsonl")]) == list_inputs(str(folder / "a.jsonl"))
    assert list_inputs([f"file://{folder}/x", str(folder / "a.jsonl")]).root.uri == str(folder)


def test_places_without_a_folder_in_common_are_refused() -> None:
    assert common_folder(["s3://a/x", "s3://b/x"]) is None
    assert common_folder(["s3://a/x", "/x"]) is None
    assert common_folder(["gs://a/x", "s3://a/x"]) is None
    assert common_folder(["/a", "/b"]) == "/"


def test_an_earlier_root_is_kept_while_it_holds_all_files(folder: Path) -> None:
    root = str(folder)
    for uris in ([f"{folder}/x/y"], [f"{folder}/x/a.jsonl"], [f"{folder}/x/*", f"{folder}/x/y/a.jsonl"]):
        inputs = list_inputs(uris, root=root)
        assert inputs.root == list_inputs(root).root
        assert set(paths(inputs)) <= set(paths(list_inputs(root)))
    assert list_inputs(f"{folder}/x", root=f"{folder}/x/y").root.uri == f"{folder}/x"
    assert list_inputs(f"{folder}/x", root=f"{folder}/xx").root.uri == f"{folder}/x"
    assert list_inputs(f"{folder}/a.jsonl", root=f"{folder}/a.jsonl").root.is_file


NAME = st.text("ab_.", min_size=1, max_size=3).filter(lambda name: name not in (".", ".."))


@given(
    names=st.lists(NAME, min_size=1, max_size=4),
    patterns=st.lists(st.sampled_from(["**", "*", "a*", "?", "_a", "ab"]), min_size=1, max_size=4),
)
def test_two_stars_stand_for_any_folders_and_the_others_for_one_name(names: list[str], patterns: list[str]) -> None:
    """Against a search that writes every ``**`` out as some stars; a folder that is meant stands for all below it."""
    spelled = [["*"] * count for count in range(len(names) + 1)]

    def written_out(left: list[str]) -> list[list[str]]:
        if not left:
            return [[]]
        heads = spelled if left[0] == "**" else [[left[0]]]
        return [[*head, *rest] for head in heads for rest in written_out(left[1:])]

    def one(pattern: str, name: str) -> bool:
        return PurePosixPath(name).match(pattern) and not (name[0] in "_." and pattern[0] in "*?")

    def meant(flat: list[str]) -> bool:
        own, below = names[: len(flat)], names[len(flat) :]
        return len(own) == len(flat) and all(map(one, flat, own)) and not any(name[0] in "_." for name in below)

    assert matches(names, patterns) == any(meant(flat) for flat in written_out(patterns) if flat or patterns)


def test_a_query_is_no_pattern() -> None:
    assert split_pattern("s3://b/in?region=us&endpoint_override=http://x:1") == (
        "s3://b/in?region=us&endpoint_override=http://x:1",
        (),
    )
    assert split_pattern("s3://b/in/p-?.csv?region=us") == ("s3://b/in?region=us", ("p-?.csv",))
    assert split_query("/a?b=c") == ("/a?b=c", "")


def plan(folder: Path, inputs: object, **options: object) -> Plan:
    spec = HeadSpec(name="v", task="embed", model=str(folder.parent / "model"))
    given = {"output": str(folder.parent / "out"), **options}
    return make_plan([spec], Options(input=inputs, **given))


def test_an_output_is_refused_where_its_parts_would_be_input(folder: Path, tiny: Path) -> None:
    (folder.parent / "model").symlink_to(tiny)
    for inputs, output in (
        (str(folder), f"{folder}/out"),
        (f"{folder}/*", f"{folder}/out"),
        ((f"{folder}/x", f"{folder}/a.jsonl"), f"{folder}/x/y/out"),
        (f"{folder}/**", f"{folder}/x/out"),
    ):
        with pytest.raises(SettingsError, match=f"output {output}: lies inside the input"):
            plan(folder, inputs, output=output, input_format="jsonl")
    for inputs, output in (
        (f"{folder}/*.jsonl", f"{folder}/out"),
        (f"{folder}/**/*.jsonl", f"{folder}/x/out"),
        ((f"{folder}/x", f"{folder}/a.jsonl"), f"{folder}/out"),
        (f"{folder}/*", f"{folder}/_out"),
        (f"{folder}/a.jsonl", f"{folder}/out"),
    ):
        assert plan(folder, inputs, output=output).store.uri == output


def test_parts_are_input_only_where_a_pattern_reaches_them(folder: Path) -> None:
    (folder / "x" / "p.parquet").write_bytes(b"")
    (source,) = list_inputs(f"{folder}/*/*.parquet").sources
    assert source.lists(f"{folder}/out")
    assert not source.lists(f"{folder}/x/out")
    assert not source.lists(f"{folder}/_out")
    assert not source.lists(str(folder))
    assert not source.lists(f"{folder}er/out")


def test_files_keep_their_numbers_when_the_list_changes(folder: Path, tiny: Path) -> None:
    (folder.parent / "model").symlink_to(tiny)
    first = plan(folder, (f"{folder}/a.jsonl", f"{folder}/x/y/a.jsonl"))
    engine = {"device": "cpu", "dtype": "float32", "budget": 64}
    manifests.save(first.store, first.new_manifest(engine))
    again = plan(folder, f"{folder}/x/y/*")
    assert again.spec.root == first.spec.root
    assert [file.path for file in again.diff.vanished] == ["a.jsonl"]
    assert again.diff.appended == ()
    more = plan(folder, f"{folder}/**/*.jsonl*")
    assert [file.path for file in more.diff.files] == ["a.jsonl", "x/y/a.jsonl", "b.jsonl.gz", "x/a.jsonl"]
    assert more.diff.vanished == ()
    # The common folder grows beyond the root: the same files have other names.
    (folder.parent / "c.jsonl").write_bytes(b'{"text": "a"}\n')
    beyond = plan(folder, (str(folder / "a.jsonl"), f"{folder.parent}/c.jsonl"))
    assert [file.path for file in beyond.diff.appended] == ["c.jsonl", "in/a.jsonl"]
    assert [file.path for file in beyond.diff.vanished] == ["a.jsonl", "x/y/a.jsonl"]


def test_the_root_is_found_again_without_a_listing(folder: Path) -> None:
    for uri in (str(folder), str(folder / "a.jsonl")):
        assert input_root(uri) == list_inputs(uri).root
    assert input_root(list_inputs(f"{folder}/**/*.log", "text").root.uri).uri == str(folder)
    with pytest.raises(InputError, match="no such file or folder"):
        input_root(f"{folder}/no")


def test_patterns_on_an_object_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with moto_server() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        bucket, other = server.bucket(), server.bucket()
        server.upload(folder, f"{bucket}/in")
        top = f"s3://{bucket}"
        inputs = list_inputs(f"{top}/in/**/a.jsonl")
        assert (inputs.root.uri, paths(inputs)) == (f"{top}/in", ["a.jsonl", "x/a.jsonl", "x/y/a.jsonl"])
        assert paths(list_inputs(f"{top}/*/?/a.jsonl")) == ["in/x/a.jsonl"]
        inputs = list_inputs([f"{top}/in/x/y", f"{top}/in/a.jsonl"])
        assert (inputs.root.uri, paths(inputs)) == (f"{top}/in", ["a.jsonl", "x/y/a.jsonl"])
        assert refusal(f"{top}/in/*.csv") == f"{top}/in/*.csv: the pattern matches no file"
        server.upload(folder, f"{other}/in")
        assert "not in one bucket or on one disk" in refusal([f"{top}/in", f"s3://{other}/in"])
        assert "not in one bucket or on one disk" in refusal([f"{top}/in", str(folder)])
