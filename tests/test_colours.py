"""One colour means one thing: without DRA is blue, with DRA is orange, in the report and in pictures."""

from __future__ import annotations

import pytest
from matplotlib.colors import to_hex

from verl_dra.simulate.group_scene import GroupScene, play_group
from verl_dra.simulate.plots import group_figure
from verl_dra.simulate.scoring import Scoring
from verl_dra.terminal.colours import DRA, GRPO, of_settings


def test_the_first_without_dra_is_blue_and_the_first_with_it_orange_in_whatever_order() -> None:
    assert of_settings([False, True]) == [GRPO, DRA]
    assert of_settings([True, False]) == [DRA, GRPO]
    assert of_settings([True]) == [DRA]


@pytest.mark.parametrize("with_dra", [[True] * 8, [False] * 8, [True, False] * 4], ids=str)
def test_eight_settings_have_eight_colours(with_dra: list[bool]) -> None:
    assert len(set(of_settings(with_dra))) == 8


def test_more_settings_than_colours_have_a_colour_each_of_those_that_are() -> None:
    given = of_settings([True] * 20)
    assert set(given) == set(given[:8])
    assert GRPO not in given


def test_simulates_bars_have_the_colours_of_the_report() -> None:
    (bars, _, *_) = group_figure(play_group(GroupScene(), Scoring())).axes
    colours = {bars.get_legend_handles_labels()[1][at]: box.patches[0] for at, box in enumerate(bars.containers)}
    assert [to_hex(patch.get_facecolor()).upper() for patch in colours.values()] == [GRPO.light, DRA.light]
    assert [name.startswith("DRA") for name in colours] == [False, True]
