"""The manifest: there and back, refusals that name the option, file numbers that stay."""

from __future__ import annotations

import json
import pickle
import random
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybert.data.manifest import (
    NAME,
    Manifest,
    compare,
    from_json,
    load,
    merge_files,
    save,
    to_json,
)
from raybert.data.splits import InputFile
from raybert.data.store import Store
from raybert.errors import InputError, OutputError, SettingsError

VECTOR = pa.list_(pa.field("element", pa.float16(), nullable=False), 4)


def manifest() -> Manifest:
    return Manifest(
        settings={
            "input": "/data/in",
            "text": "text",
            "keep": ["title", "id"],
            "split_rows": 16384,
            "where": None,
            "vector_type": "float32",
        },
        heads=(
            {"name": "v", "task": "embed", "model": "demo", "options": {"pooling": "mean"}, "fingerprint": "a" * 64},
            {"name": "t", "task": "classify", "model": "m", "options": {}, "fingerprint": "b" * 64},
        ),
        files=tuple(InputFile(number=number, path=path, size=10, version="1") for number, path in enumerate("abc")),
        schema=pa.schema(
            [
                pa.field("_file", pa.int32()),
                pa.field("v", VECTOR),
                pa.field("t_scores", pa.list_(pa.float32()), metadata={"labels": '["x", "y"]'}),
            ]
        ),
        engine={"dtype": "float32", "budget": 16384, "threads": 2, "versions": {"torch": "2.13", "raybert": "0.1.0"}},
    )


def test_a_manifest_comes_back(tmp_path):
    store = Store(tmp_path)
    assert load(store) is None
    save(store, manifest())
    assert load(store) == manifest()
    assert load(store).schema.equals(manifest().schema, check_metadata=True)
    assert store.list() == [NAME]


def test_a_manifest_travels_with_its_whole_schema():
    found = pickle.loads(pickle.dumps(manifest()))
    assert found == manifest()
    assert not found.schema.field("v").type.value_field.nullable
    assert found.schema.field("t_scores").metadata == {b"labels": b'["x", "y"]'}


def test_equal_manifests_have_equal_text_and_nothing_of_the_place(tmp_path):
    stores = [Store(tmp_path / name) for name in ("one place", "another place")]
    turned = replace(manifest(), settings=dict(reversed(manifest().settings.items())))
    save(stores[0], manifest())
    save(stores[1], turned)
    text = stores[0].read(NAME)
    assert text == stores[1].read(NAME)
    assert b"place" not in text
    assert set(json.loads(text)) == {"format", "settings", "heads", "files", "schema", "engine"}


def test_a_path_that_is_not_utf8_comes_back():
    odd = replace(manifest(), files=(InputFile(number=0, path="a\udcff/日本.txt", size=1, version="1"),))
    assert from_json(to_json(odd).encode()) == odd


def test_a_damaged_manifest_is_told_in_one_line(tmp_path):
    store = Store(tmp_path)
    text = to_json(manifest()).encode()
    cuts = [text[:length] for length in random.Random(0).sample(range(len(text) - 1), 60)]
    facts = json.loads(text)
    odd = [{**facts, "format": 1}, {**facts, "files": [{"path": "a"}]}, {**facts, "schema": {"arrow": "AAAA"}}, [], 7]
    missing = [{key: value for key, value in facts.items() if key != gone} for gone in facts]
    for damaged in [*cuts, b"\xff\xfe", *(json.dumps(each).encode() for each in [*odd, *missing])]:
        store.write(NAME, damaged)
        with pytest.raises(OutputError, match=r"manifest\.json: not a readable manifest .*--overwrite") as caught:
            load(store)
        assert "\n" not in str(caught.value)


def test_what_shapes_rows_shapes_names():
    base = manifest()

    def shaping(**changes):
        return replace(base, **changes).shaping

    fields = list(base.schema)
    differing = {
        base.shaping,
        shaping(settings={**base.settings, "split_rows": 1}),
        shaping(settings={**base.settings, "keep": None}),
        shaping(heads=base.heads[:1]),
        shaping(heads=base.heads[::-1]),
        shaping(heads=({**base.heads[0], "fingerprint": "c" * 64}, base.heads[1])),
        shaping(schema=pa.schema(fields[:2])),
        shaping(schema=pa.schema([*fields[:2], fields[2].with_metadata({"labels": '["y", "x"]'})])),
        shaping(schema=pa.schema([fields[0].with_nullable(False), *fields[1:]])),
    }
    assert len(differing) == 9
    assert base.shaping == shaping(settings={**base.settings, "input": "s3://elsewhere"})
    assert base.shaping == shaping(heads=({**base.heads[0], "model": "a/copy"}, base.heads[1]))
    assert base.shaping == shaping(files=(), engine={}, schema=base.schema.with_metadata({"pandas": "{}"}))


def test_the_same_or_nothing_asked_is_accepted():
    base = manifest()
    compare(base, {})
    compare(base, {"split_rows": None, "text": "text", "keep": ("title", "id"), "budget": 16384})
    compare(base, base.settings, base.heads[::-1])
    compare(base, {}, [{**head, "model": "another/copy"} for head in base.heads])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"split_rows": 1000}, "split-rows: this output was made with 16384, not 1000;"),
        ({"text": "body"}, "text: this output was made with text, not body;"),
        ({"keep": ["id", "title"]}, 'keep: this output was made with ["title", "id"], not ["id", "title"];'),
        ({"where": "a > 1"}, "where: this output was made with none, not a > 1;"),
        ({"dtype": "bfloat16"}, "dtype: this output was made with float32, not bfloat16;"),
        ({"unheard_of": 1}, "unheard-of: this output was made with none, not 1;"),
    ],
)
def test_another_value_is_refused_by_its_option(asked, message):
    with pytest.raises(SettingsError) as caught:
        compare(manifest(), asked)
    assert str(caught.value) == f"{message} use the same value or --overwrite"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "w"}, 'heads: this output was made with ["t", "v"], not ["t", "w"];'),
        ({"task": "ner"}, "head v: task: this output was made with embed, not ner;"),
        ({"options": {"pooling": "cls"}}, "head v: pooling: this output was made with mean, not cls;"),
        (
            {"options": {"pooling": "mean", "max_length": 9}},
            "head v: max-length: this output was made with none, not 9;",
        ),
        (
            {},
            "head v: fingerprint: this output was made with aaaaaaaaaaaa (model demo), not cccccccccccc (model demo);",
        ),
    ],
)
def test_another_head_is_refused_by_what_differs(change, message):
    base = manifest()
    with pytest.raises(SettingsError) as caught:
        compare(base, {}, [{**base.heads[0], "fingerprint": "c" * 64, **change}, base.heads[1]])
    assert str(caught.value) == f"{message} use the same value or --overwrite"


def test_a_changed_file_keeps_its_number_and_a_new_one_is_appended():
    known = manifest().files
    listed = [
        InputFile(number=99, path=path, size=size, version="1") for path, size in [("B", 1), ("a", 10), ("c", 11)]
    ]
    found = merge_files(known, listed)
    new, changed = replace(listed[0], number=3), replace(listed[2], number=2)
    assert found.appended == (new,)
    assert found.changed == (changed,)
    assert found.vanished == (known[1],)
    assert found.files == (known[0], known[1], changed, new)


def test_more_files_than_names_can_number_are_refused():
    known = [InputFile(number=999_998, path="a", size=1, version="1")]
    listed = [InputFile(number=0, path=path, size=1, version="1") for path in "bc"]
    assert merge_files(known, listed[:1]).appended[0].number == 999_999
    with pytest.raises(InputError, match="1000001 files exceed 1000000"):
        merge_files(known, listed)


LISTING = st.dictionaries(st.text("abcd", min_size=1, max_size=3), st.integers(0, 3), max_size=9)


@given(st.lists(LISTING, min_size=1, max_size=5))
def test_numbers_are_given_once_and_stay(listings):
    numbers: dict[str, int] = {}
    files: tuple[InputFile, ...] = ()
    for listing in listings:
        before = {file.path: file for file in files}
        found = merge_files(
            files, [InputFile(number=0, path=path, size=1, version=str(v)) for path, v in listing.items()]
        )
        files = found.files
        assert [file.number for file in files] == list(range(len(files)))
        for file in files:
            assert numbers.setdefault(file.path, file.number) == file.number
        assert [file.path for file in found.appended] == sorted(listing.keys() - before.keys())
        assert {file.path for file in found.vanished} == before.keys() - listing.keys()
        assert {file.path for file in found.changed} == {
            path for path in before.keys() & listing.keys() if before[path].version != str(listing[path])
        }
        again = merge_files(files, [file for file in files if file.path in listing])
        assert (again.files, again.appended, again.changed) == (files, (), ())
