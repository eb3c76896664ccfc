"""A report as one HTML file that needs no network."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from importlib.resources import files
from typing import Any

from verl_dra.report.contents import Shown
from verl_dra.report.curves import charts
from verl_dra.report.groups import CLUSTER_COSINE, Group
from verl_dra.report.runs import Run

# Okabe and Ito's, which colour-blind eyes tell apart; without black and yellow, which no theme shows well.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6BB1", "#7F7F7F")


def render(runs: Sequence[Run], shown: Sequence[Shown], most_bytes: int, notes: Sequence[str] = ()) -> tuple[str, int]:
    """The page, and the number of steps whose groups it had to leave out to have at most `most_bytes`.

    Groups are compressed step by step; the page unpacks a step when it is looked at. Where all steps are too much,
    every second one of the run that has most is left out, and so on; the first and the last of each stay.
    """
    page = files("verl_dra.report") / "page"
    families = list(dict.fromkeys(run.family for run in runs))
    head: dict[str, Any] = {
        "runs": [{"name": run.name, "family": families.index(run.family)} for run in runs],
        "families": [{"name": name, "colour": COLOURS[number % len(COLOURS)]} for number, name in enumerate(families)],
        "charts": charts(runs),
        "cluster_cosine": CLUSTER_COSINE,
    }
    parts = {
        "TITLE": html.escape(", ".join(families)),
        "STYLE": (page / "report.css").read_text(),
        "SCRIPT": (page / "report.js").read_text(),
        "PLOTLY": _packed((files("plotly") / "package_data" / "plotly.min.js").read_bytes()),
    }
    template = (page / "report.html").read_text()
    packed = {
        (number, step): _packed(_json([_group(group) for group in groups.groups]))
        for number, part in enumerate(shown)
        for step, groups in part.steps.items()
    }
    room = most_bytes - len(template) - sum(len(part) for part in parts.values()) - 2 * len(_json(head))
    kept = _thinned(shown, {key: len(text) for key, text in packed.items()}, room)
    left_out = sum(len(part.steps) for part in shown) - len(kept)
    head["shown"] = [
        {"run": part.run, "kind": part.kind, "steps": [step for n, step in kept if n == number]}
        for number, part in enumerate(shown)
    ]
    head["notes"] = [
        *notes,
        *([f"The groups of {left_out} steps are left out, to keep this file small."] * (left_out > 0)),
    ]
    parts["DATA"] = _packed(_json(head))
    parts["GROUPS"] = "\n".join(
        f'<script type="text/plain" id="groups-{number}-{step}">{packed[number, step]}</script>'
        for number, step in kept
    )
    return re.sub(r"@@([A-Z]+)@@", lambda match: parts[match[1]], template), left_out


def _thinned(shown: Sequence[Shown], sizes: Mapping[tuple[int, int], int], room: int) -> list[tuple[int, int]]:
    """Those (number of a part, step) that fit; what takes most room is thinned first."""
    kept = [[(number, step) for step in part.steps] for number, part in enumerate(shown)]
    while sum(sizes[key] for part in kept for key in part) > room:
        thinnable = [part for part in kept if len(part) > 2]
        if not thinnable:
            break
        most = max(thinnable, key=lambda part: sum(sizes[key] for key in part))
        del most[1:-1:2]
    return [key for part in kept for key in part]


def _group(group: Group) -> dict[str, Any]:
    return {
        "prompt": group.prompt,
        "truth": group.ground_truth,
        "paths": _short(group.effective_paths),
        # In the order of Completion's fields.
        "completions": [[_short(value) for value in astuple(completion)] for completion in group.completions],
        "similarity": None
        if group.similarity is None
        else [[round(c, 3) for c in row] for row in group.similarity.tolist()],
    }


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace")


def _packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()
