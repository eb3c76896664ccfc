"""Windows by array operations against windows by plain lists."""

from __future__ import annotations

from itertools import chain

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from verl_dra.embedding.windows import Cutter

special = st.lists(st.integers(1000, 1003), max_size=2)


def cut_by_lists(text: list[int], cutter: Cutter) -> list[list[int]]:
    size = cutter.size
    if not text:
        return []
    if cutter.long_text == "tail":
        return [text[-size:]]
    windows = [text[i : i + size] for i in range(0, len(text), size)]
    return windows[:1] if cutter.long_text == "head" else windows


@given(
    texts=st.lists(st.lists(st.integers(0, 99), max_size=30), min_size=1, max_size=6),
    cutter=st.builds(Cutter, st.integers(1, 7), special, special, st.sampled_from(["chunk", "head", "tail"])),
)
def test_windows_are_those_of_each_text_the_longest_first(texts: list[list[int]], cutter: Cutter) -> None:
    windows = cutter.cut(np.array(list(chain(*texts)), dtype=np.int32), np.array([len(text) for text in texts]))
    expected = [(n, window) for n, text in enumerate(texts) for window in cut_by_lists(text, cutter)]
    expected.sort(key=lambda pair: -len(pair[1]))
    rows = np.split(windows.ids, np.cumsum(windows.lengths)[:-1]) if expected else []
    assert [row.tolist() for row in rows] == [[*cutter.before, *window, *cutter.after] for _, window in expected]
    assert windows.text.tolist() == [number for number, _ in expected]
    assert windows.tokens.tolist() == [len(window) for _, window in expected]
    assert windows.lengths.tolist() == [len(row) for row in rows]


@given(length=st.integers(1, 200), size=st.integers(1, 7), most=st.integers(1, 40))
def test_no_more_windows_than_asked_for_spread_evenly(length: int, size: int, most: int) -> None:
    ids = np.arange(length, dtype=np.int32)
    kept = Cutter(size, [], [], max_windows=most).cut(ids, np.array([length]))
    numbers = np.sort(kept.ids[np.cumsum(kept.lengths) - kept.lengths] // size)
    of_all = -(-length // size)
    assert len(numbers) == min(of_all, most)
    assert numbers[0] == 0
    assert numbers[-1] == (of_all - 1 if most > 1 else 0)
    gaps = np.diff(numbers)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1
    assert kept.tokens.sum() == len(kept.ids) == len(set(kept.ids.tolist()))
