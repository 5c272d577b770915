"""Sliding windows and cuts are arithmetic; the laws hold for all sizes, and the reference's are the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from raybert.errors import SettingsError
from raybert.text.windows import cut, share, slide

counts = st.lists(st.integers(0, 400), max_size=20).map(lambda values: np.array(values, np.int64))
rooms = st.integers(1, 60).flatmap(lambda room: st.tuples(st.just(room), st.integers(0, room - 1)))


@given(counts=counts, room_and_stride=rooms)
def test_windows_cover_every_piece_and_overlap_by_the_stride(
    counts: np.ndarray, room_and_stride: tuple[int, int]
) -> None:
    room, stride = room_and_stride
    spans = slide(counts, room, stride)
    assert spans.row.dtype == np.int32
    assert sorted(set(spans.row.tolist())) == list(range(len(counts)))
    assert np.all(np.diff(spans.row) >= 0)
    for row, count in enumerate(counts.tolist()):
        of_row = spans.row == row
        begins, ends = spans.begin[of_row], spans.end[of_row]
        assert (begins[0], ends[-1]) == (0, count)
        assert np.all(ends - begins <= room)
        assert np.all(ends[:-1] - begins[1:] == stride)
        assert np.all(np.diff(ends) > 0)  # with the line above: no window lies inside another
        if count:
            assert np.all(ends > begins)


@given(counts=counts, room_and_stride=rooms)
def test_windows_are_the_librarys(counts: np.ndarray, room_and_stride: tuple[int, int]) -> None:
    room, stride = room_and_stride
    library = Tokenizer(models.WordLevel({str(number): number for number in range(400)}, unk_token="0"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.enable_truncation(room, stride=stride)
    expected = []
    for row, count in enumerate(counts.tolist()):
        first = library.encode(" ".join(map(str, range(count))))
        for window in (first, *first.overflowing):
            expected.append((row, window.ids))
    spans = slide(counts, room, stride)
    found = zip(spans.row.tolist(), spans.begin.tolist(), spans.end.tolist(), strict=True)
    assert [(row, list(range(begin, end))) for row, begin, end in found] == expected


@pytest.mark.parametrize(("room", "stride"), [(10, 10), (10, 11), (1, 1), (10, -1)])
def test_a_stride_without_a_step_forward(room: int, stride: int) -> None:
    with pytest.raises(SettingsError, match=f"stride: {stride} is outside 0 to {room - 1}; a window holds {room}"):
        slide(np.array([5]), room, stride)


@given(counts=counts, take=st.integers(0, 450))
def test_cut_takes_one_end(counts: np.ndarray, take: int) -> None:
    first, last = cut(counts, take, "first"), cut(counts, take, "last")
    taken = np.minimum(counts, take)
    for spans in (first, last):
        assert spans.row.tolist() == list(range(len(counts)))
        assert np.array_equal(spans.end - spans.begin, taken)
    assert not first.begin.any()
    assert np.array_equal(last.end, counts)


@given(lengths=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=30), room=st.integers(1, 50))
def test_pairs_share_a_window_as_in_the_library(lengths: list[tuple[int, int]], room: int) -> None:
    first, second = np.array(lengths, np.int64).reshape(-1, 2).T
    got = share(first, second, room)
    library = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.enable_truncation(room)
    for number, (a, b) in enumerate(lengths):
        ids = library.encode("a " * a, "b " * b).ids
        assert (got[0][number], got[1][number]) == (ids.count(0), ids.count(1))
