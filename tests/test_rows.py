"""Rows of a batch as sessions, read from veRL's keys."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from verl_dra.scorer.messages import Session
from verl_dra.training.rows import Rows


def test_final_output_is_the_one_with_the_highest_index_whatever_the_row_order() -> None:
    rows = Rows.of(["a_0_1", "b_3_0", "a_0_10", "a_0_9", "a_0_0"], [False] * 5)
    assert rows.final == [2, 1]
    assert rows.session == [0, 1, 0, 0, 0]
    assert rows.names == [Session("a", 0), Session("b", 3)]


def test_padding_sessions_keep_their_rows_but_are_not_real() -> None:
    rows = Rows.of(["pad9_0_0", "a_0_0", "pad9_1_0", "a_1_0"], [True, False, True, False])
    assert rows.final == [0, 1, 2, 3]
    assert rows.real == [1, 3]
    assert rows.names == [Session("a", 0), Session("a", 1)]


def test_uids_may_hold_underscores_and_only_the_flag_makes_padding() -> None:
    rows = Rows.of(["pad_me_not_1_0", "x_y_12_0"], [False, False])
    assert rows.names == [Session("pad_me_not", 1), Session("x_y", 12)]
    assert rows.real == [0, 1]


@given(
    sessions=st.dictionaries(
        st.tuples(st.text("ab_", min_size=1, max_size=3), st.integers(0, 20)), st.integers(1, 12), min_size=1
    ),
    random=st.randoms(use_true_random=False),
)
def test_every_row_belongs_to_its_session_and_every_session_has_its_last_output(
    sessions: dict[tuple[str, int], int], random
) -> None:
    keys = [f"{uid}_{session}_{i}" for (uid, session), outputs in sessions.items() for i in range(outputs)]
    random.shuffle(keys)
    padding = {name: random.random() < 0.2 for name in sessions}
    of_key = [(key.rsplit("_", 2)[0], int(key.rsplit("_", 2)[1])) for key in keys]

    rows = Rows.of(keys, [padding[name] for name in of_key])

    assert sorted(keys[row] for row in rows.final) == sorted(f"{u}_{s}_{n - 1}" for (u, s), n in sessions.items())
    assert [of_key[rows.final[at]] for at in rows.session] == of_key
    assert [of_key[rows.final[at]] for at in rows.real] == [tuple(name) for name in rows.names]
    assert set(rows.names) == {name for name, is_padding in padding.items() if not is_padding}
