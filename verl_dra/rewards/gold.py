"""Right answers as data sets have them, as texts."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def gold_text(value: Any) -> str | None:
    """A right answer as a text, or None of what is none: null, NaN, a boolean, bytes, an object, a list of several.

    A text stays as it is, a whole or real number becomes one, and a list (or array) of one is that one. Of several it
    is not known whether all are asked for or one will do: write them as one text, with commas between, or keep one.
    """
    if hasattr(value, "tolist"):  # numpy's, out of parquet
        value = value.tolist()
    if isinstance(value, (list, tuple)) and len(value) == 1:
        return gold_text(value[0])
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        return None
    return str(int(value)) if isinstance(value, Integral) else repr(float(value))
