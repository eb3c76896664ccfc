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
from typing import Any, NamedTuple

from verl_dra.report.contents import Shown
from verl_dra.report.curves import charts
from verl_dra.report.findings import findings
from verl_dra.report.groups import CLUSTER_COSINE, Group
from verl_dra.report.runs import Run
from verl_dra.report.shares import shares
from verl_dra.terminal.colours import DRA, GRPO, of_settings

_SHORT = 1000  # characters of a text, where whole ones are too much


class Page(NamedTuple):
    """A page, and what it had to leave out to be as small as it has to be."""

    html: str
    left_out: list[str]


def render(runs: Sequence[Run], shown: Sequence[Shown], most_bytes: int, notes: Sequence[str] = ()) -> Page:
    """The page of at most `most_bytes`.

    Groups are compressed step by step; the page unpacks a step when it is looked at. Where all steps are too much,
    texts are cut short; then every second step of the run that has most is left out, and so on; the first and the last
    of each stay.
    """
    page = files("verl_dra.report") / "page"
    families = list(dict.fromkeys(run.family for run in runs))
    colours = of_settings([any(run.with_dra for run in runs if run.family == family) for family in families])
    said = findings(runs)
    head: dict[str, Any] = {
        "runs": [{"name": run.name, "family": families.index(run.family)} for run in runs],
        "families": [{"name": name, "colours": colour} for name, colour in zip(families, colours, strict=True)],
        "methods": {"without": GRPO, "with": DRA},
        "charts": charts(runs, shown),
        "shares": shares(shown),
        "cluster_cosine": CLUSTER_COSINE,
    }
    parts = {
        "TITLE": html.escape(", ".join(families)),
        "SAID": html.escape(said.sentence),
        "BASIS": html.escape(said.basis),
        "STYLE": (page / "report.css").read_text(),
        "SCRIPT": (page / "report.js").read_text(),
        "PLOTLY": _packed((files("plotly") / "package_data" / "plotly.min.js").read_bytes()),
    }
    template = (page / "report.html").read_text()
    room = most_bytes - len(template) - sum(len(part) for part in parts.values()) - 2 * len(_json(head))
    packed = _packed_steps(shown, None)
    left_out = []
    if sum(map(len, packed.values())) > room:
        packed = _packed_steps(shown, _SHORT)
        left_out.append(f"texts cut to {_SHORT} characters")
    kept = _thinned(shown, {key: len(text) for key, text in packed.items()}, room)
    if missing := len(packed) - len(kept):
        left_out.append(f"the groups of {missing} steps left out")
    head["shown"] = [
        {"run": part.run, "kind": part.kind, "steps": [step for n, step in kept if n == number]}
        for number, part in enumerate(shown)
    ]
    head["notes"] = [*notes, *([f"To keep this file small: {', '.join(left_out)}."] if left_out else [])]
    parts["DATA"] = _packed(_json(head))
    parts["GROUPS"] = "\n".join(
        f'<script type="text/plain" id="groups-{number}-{step}">{packed[number, step]}</script>'
        for number, step in kept
    )
    return Page(re.sub(r"@@([A-Z]+)@@", lambda match: parts[match[1]], template), left_out)


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


def _packed_steps(shown: Sequence[Shown], characters: int | None) -> dict[tuple[int, int], str]:
    """By number of a part and step; of texts `characters`, or all."""
    return {
        (number, step): _packed(_json([_group(group, characters) for group in groups.groups]))
        for number, part in enumerate(shown)
        for step, groups in part.steps.items()
    }


def _group(group: Group, characters: int | None) -> dict[str, Any]:
    return {
        "prompt": _cut(group.prompt, characters),
        "truth": group.ground_truth,
        "paths": _short(group.effective_paths),
        "scored": group.scored,
        "method": group.method,
        # In the order of Completion's fields.
        "completions": [
            [_cut(completion.text, characters), *map(_short, astuple(completion)[1:])]
            for completion in group.completions
        ],
        "similarity": None
        if group.similarity is None
        else [[round(c, 3) for c in row] for row in group.similarity.tolist()],
    }


def _cut(text: str, characters: int | None) -> str:
    """Without its middle; how much that is can't be said, as a recorded text may have lost some before."""
    if characters is None or len(text) <= characters:
        return text
    return f"{text[: characters // 2]}\n[... left out ...]\n{text[-characters // 2 :]}"


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace")


def _packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()
