"""The filter: what an expression means, as Python and SQL have it, and what is told where it makes no sense."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybert.data.where import FUNCTIONS, Where, where_names
from raybert.errors import SettingsError

COLUMNS: dict[str, Any] = {
    "lang": pa.array(["en", "de", None, "ÉN"]),
    "score": pa.array([0.5, None, 2.0, math.nan]),
    "n": pa.array([2**60 + 1, 0, -5, None]),
    "u": pa.array([2**64 - 1, 1, None, 0], pa.uint64()),
    "ok": pa.array([True, False, None, True]),
    "day": pa.array([date(2024, 5, 1), None, date(2024, 6, 1), date(2025, 1, 1)]),
    "at": pa.array([datetime(2024, 5, 1, 10, tzinfo=UTC), None, None, None], pa.timestamp("us", "UTC")),
    "price": pa.array([Decimal("1.50"), None, Decimal("3.00"), Decimal("-1.00")]),
    "raw": pa.array([b"en", b"x", None, b""]),
    "my col": pa.array(["é東x", "ab12", "", None]),
    "list": pa.array([[1], None, [], [2]]),
}


def kept(source: str) -> list[int]:
    names = where_names(source)
    where = Where(source, pa.schema([(name, COLUMNS[name].type) for name in names]))
    mask = where.mask([COLUMNS[name] for name in names], 4)
    assert mask.dtype == bool
    assert where.mask([COLUMNS[name].slice(0, 0) for name in names], 0).tolist() == []
    return [row for row, stays in enumerate(mask.tolist()) if stays]


@pytest.mark.parametrize(
    ("source", "rows"),
    [
        ("lang == 'en' and score > 0.1", [0]),
        ("lang != 'en'", [1, 3]),
        ("lang in ['en', 'de']", [0, 1]),
        ("lang not in ('en',)", [1, 3]),
        ("'en' == lang or ok", [0, 3]),
        ("lang < 'e'", [1]),
        ("n == 1152921504606846977", [0]),
        ("n == 1152921504606846976", []),
        ("n > 0.5", [0]),
        ("0 <= n < 5", [1]),
        ("n in [1.5, 0, -5]", [1, 2]),
        ("u > 5", [0]),
        ("u in [1]", [1]),
        ("not ok", [1]),
        ("ok", [0, 3]),
        ("ok == True", [0, 3]),
        ("lang is None", [2]),
        ("lang is not None and score is None", [1]),
        ("list is None", [1]),
        ("day >= '2024-06-01'", [2, 3]),
        ("'2024-05-01' <= day < '2025-01-01'", [0, 2]),
        ("day in ['2024-05-01']", [0]),
        ("at == '2024-05-01T12:00:00+02:00'", [0]),
        ("price * 2 >= 3", [0, 2]),
        ("raw == 'en'", [0]),
        ("n + 1 > -4 and -n < 5", [0, 1]),
        ("1 / n > 1", [1]),
        ("(n - n) / n == 0", [0, 2]),
        ("score > 0", [0, 2]),
        ("len(col('my col')) == 3", [0]),
        ("lower(lang) == 'én'", [3]),
        ("startswith(lang, 'e')", [0]),
        ("endswith(lang, 'n')", [0]),
        ("contains(col('my col'), 'b1')", [1]),
        (r"matches(col('my col'), '^[a-z]+\d+$')", [1]),
        ("True or ok", [0, 1, 2, 3]),
        ("ok or ok is None", [0, 2, 3]),
        ("lang\n==\n'en'", [0]),
    ],
)
def test_what_an_expression_means(source: str, rows: list[int]) -> None:
    assert kept(source) == rows


@pytest.mark.parametrize(
    ("source", "character", "said"),
    [
        ("lang > 5", 1, "a text is compared with a number"),
        ("ok and lang == 1", 8, "a text is compared with a number"),
        ("lang == None", 1, "nothing compares with None; write `is None` or `is not None`"),
        ("lang is 'en'", 9, "is and is not take None alone; write == or !="),
        ("ok and lang", 8, "and takes true or false, not a text"),
        ("n", 1, "the filter is a number, not true or false"),
        ("ok < True", 1, "values of true or false have no such comparison"),
        ("list == list", 1, "values of list<item: int64> have no such comparison"),
        ("day > 'soon'", 7, "'soon' can't be read as date32[day]"),
        ("day > 2024", 1, "date32[day] is compared with a number"),
        ("lang in n", 9, "in takes a list of constants"),
        ("lang in [None]", 10, "in takes a list of constants, here each a text, and nothing else"),
        ("lang in ['a', lang]", 15, "in takes a list of constants, here each a text, and nothing else"),
        ("n % 2 == 0", 1, "arithmetic is + - * / only"),
        ("lang + lang == 'x'", 1, "arithmetic takes a number, not a text"),
        ("lang.upper() == 'x'", 1, "there is no such function"),
        ("eval(lang)", 1, "there is no such function; there are len, lower"),
        ("lang[0] == 'x'", 1, "lang[0] is nothing that a filter may hold"),
        ("(lambda: lang)() == 1", 1, "there is no such function"),
        ("len(lang, lang) == 1", 1, "len takes 1 argument"),
        ("contains(lang, lang)", 16, "contains takes a constant text"),
        ("contains(n, 'a')", 10, "contains takes a text, not a number"),
        ("matches(lang, '(')", 15, "matches: Invalid regular expression: missing ): ("),
        ("n == 99999999999999999999", 6, "a number of more than 64 bits is no constant that a filter may hold"),
        ("lang == b'en'", 9, "b'en' is no constant that a filter may hold"),
        ("lang ==", None, "invalid syntax"),
        ("lang == 'a'; ok", 12, "invalid syntax"),
        ("5 > 3", None, "names no column"),
        ("", None, "invalid syntax"),
        ("ok" + " or ok" * 5 + " or (" * 300, None, "too many nested parentheses"),
        ("not " * 100_000 + "ok", None, ""),
    ],
)
def test_what_makes_no_sense_is_told_with_its_place(source: str, character: int | None, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        kept(source)
    message = str(caught.value)
    assert message.startswith("where ")
    assert said in message
    assert "\n" not in message
    if character is not None:
        assert f"{source!r}, character {character}: " in message


def test_every_function_is_tested() -> None:
    assert set(FUNCTIONS) == {"len", "lower", "startswith", "endswith", "contains", "matches"}


def test_names_come_once_and_in_order() -> None:
    assert where_names("b > 1 and col('a b') == a and len(b) > len and col('len') > 2") == ("b", "a b", "a", "len")


NUMBERS = st.none() | st.integers(-3, 3) | st.floats(-3, 3)


@given(
    rows=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=20),
    source=st.recursive(
        st.sampled_from(["a < b", "a == b", "a != 1", "b >= 0.5", "a in [1, 2]", "b not in [0, 0.5]", "a is None"]),
        lambda inner: st.one_of(
            st.builds("({} and {})".format, inner, inner),
            st.builds("({} or {})".format, inner, inner),
            st.builds("not {}".format, inner),
        ),
        max_leaves=6,
    ),
)
def test_without_nulls_it_is_what_python_says(rows: list[tuple[Any, Any]], source: str) -> None:
    """Rows with a null are checked for one thing only: that they are judged alone."""
    names = where_names(source)
    where = Where(source, pa.schema([(name, pa.float64()) for name in names]))
    place = {"a": 0, "b": 1}
    columns = [pa.array([row[place[name]] for row in rows], pa.float64()) for name in names]
    mask = where.mask(columns, len(rows)).tolist()
    for at, (a, b) in enumerate(rows):
        assert where.mask([column.slice(at, 1) for column in columns], 1).tolist() == [mask[at]]
        if a is not None and b is not None:
            assert mask[at] == eval(source, {"a": a, "b": b})
