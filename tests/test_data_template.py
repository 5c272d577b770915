"""Templates: texts made of columns, the same from every format."""

from __future__ import annotations

import json
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybert.data.template import Template, template_names, template_type
from raybert.errors import SettingsError


def filled(source: str, **columns: Any) -> list[str | None]:
    template = Template(source, pa.schema([(name, columns[name].type) for name in template_names(source)]))
    given = [columns[name] for name in template_names(source)]
    found = template.fill([each.cast(pa.large_string()) if each.type == pa.string() else each for each in given])
    assert found.type == pa.large_string()
    return list(found.to_pylist())


def test_texts_are_put_in_as_they_are() -> None:
    title, body = pa.array(["A", "", None, "{x}"]), pa.array(["b\n", "", "c", "}"])
    assert filled("{title}. {body}", title=title, body=body) == ["A. b\n", ". ", None, "{x}. }"]
    assert filled("{body}{body}", body=body) == ["b\nb\n", "", "cc", "}}"]
    assert filled("{{{body}}} {{}}", body=body) == ["{b\n} {}", "{} {}", "{c} {}", "{}} {}"]
    assert filled("é {a b}", **{"a b": body}) == ["é b\n", "é ", "é c", "é }"]


@given(
    values=st.lists(st.none() | st.floats() | st.sampled_from([0.1, 1.0, 1e16, 1e-7, -0.0, math.inf, math.nan])),
    whole=st.lists(st.none() | st.integers(-(2**63), 2**63 - 1)),
    flags=st.lists(st.none() | st.booleans()),
)
def test_numbers_and_booleans_are_jsons_words(values: Any, whole: Any, flags: Any) -> None:
    for found, kind in ((values, pa.float64()), (whole, pa.int64()), (flags, pa.bool_())):
        assert filled("{x}", x=pa.array(found, kind)) == [None if each is None else json.dumps(each) for each in found]


def test_small_floats_have_as_few_digits_as_tell_them_apart() -> None:
    found = pa.array([0.1, 1.0, 16777216.0, math.nan, None], pa.float32())
    assert filled("{x}", x=found) == ["0.1", "1.0", "16777216.0", "NaN", None]
    assert filled("{x}", x=found.cast(pa.float16(), safe=False).slice(0, 2)) == ["0.099975586", "1.0"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("no column", "names no column; write one in braces, as in '{title}. {body}'"),
        ("{{x}}", "names no column; write one in braces"),
        ("{}", "{} names no column; write its name between the braces"),
        ("{x", "expected '}' before end of string; write {{ and }} for braces"),
        ("x}", "Single '}' encountered in format string; write {{ and }} for braces"),
        ("{x.y}", "{x.y} is more than a column's name; a template takes names alone"),
        ("{x[0]}", "{x[0]} is more than a column's name"),
        ("{x!r}", "{x!r} is more than a column's name"),
        ("{x:>9}", "{x:>9} is more than a column's name"),
        ("{x}\ud800", "holds half of a surrogate pair"),
    ],
)
def test_what_is_no_template_is_told_in_one_line(source: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        template_names(source)
    assert str(caught.value).startswith(f"text {source!r}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_which_types_go_into_a_text() -> None:
    assert template_type(pa.large_binary()) == template_type(pa.null()) == pa.string()
    assert template_type(pa.uint8()) == pa.uint8()
    assert template_type(pa.list_(pa.string())) is template_type(pa.date32()) is None
