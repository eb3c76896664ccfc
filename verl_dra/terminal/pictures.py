"""Whether a picture can be drawn where `--plot` says, found out before the work that it shows."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

_FORMATS = (".png", ".svg", ".pdf")


class PictureError(ValueError):
    """No picture can be drawn there; the message says why and what to do."""


def check_picture(path: Path) -> None:
    """Raise a PictureError unless `path` can be drawn."""
    if path.suffix.lower() not in _FORMATS:
        raise PictureError(f"--plot {path} must end in {', '.join(_FORMATS)}")
    if not path.parent.is_dir():
        raise PictureError(f"--plot {path}: there is no folder {path.parent}")
    if find_spec("matplotlib") is None:
        raise PictureError("--plot needs matplotlib; pip install 'verl_dra[plot]'")
