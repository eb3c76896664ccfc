"""Colours of pictures and pages. Each means one thing, in all of them: blue is without DRA, orange is with DRA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Colour(NamedTuple):
    """One colour, as CSS and matplotlib write it, of a contrast of 3 or more on either ground."""

    light: str
    """On white and on light panels."""
    dark: str
    """On dark panels."""


# The first ones are Okabe and Ito's, which colour-blind eyes tell apart.
GRPO = Colour("#0072B2", "#56B4E9")
DRA = Colour("#B87700", "#E69F00")
GREEN = Colour("#00875F", "#2FBF8F")
PINK = Colour("#B5588C", "#CC79A7")
_VERMILION = Colour("#D55E00", "#FF7F3F")
_SLATE = Colour("#5470A8", "#9DB4D8")
_OLIVE = Colour("#7A7A00", "#C8C84A")
_GREY = Colour("#6E6E6E", "#A8A8A8")
_CRIMSON = Colour("#9B1B30", "#F0788C")
WRONG = "#BBBBBB"
"""Of what is wrong, whoever made it."""

_WITHOUT = (GRPO, GREEN, _SLATE, _GREY, PINK, _OLIVE, _CRIMSON, _VERMILION)
_WITH = (DRA, _VERMILION, PINK, _OLIVE, _CRIMSON, GREEN, _SLATE, _GREY)


def of_settings(with_dra: Sequence[bool]) -> list[Colour]:
    """A colour for each setting: the first one without DRA is blue and the first one with it is orange, whatever their
    order; the others have what is left, cold without DRA and warm with it as long as there is some."""
    given: list[Colour] = []
    for at, own in enumerate(_WITH if dra else _WITHOUT for dra in with_dra):
        fresh = (colour for colour in own if colour not in given)
        given.append(next(fresh, own[at % len(own)]))
    return given
