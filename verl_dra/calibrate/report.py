"""What the command found, as JSON and as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verl_dra.algorithm.survival import batch_survival_ratio, normalised_survival_ratio, survival_ratio
from verl_dra.calibrate.encoders import Seen
from verl_dra.calibrate.measure import QUANTILES, auc, auc_interval, cluster_cosine
from verl_dra.calibrate.pairs import Labelled
from verl_dra.calibrate.records import Recorded
from verl_dra.terminal.tables import table

SAME, DIFFERENT = "same way", "different ways"
COMMON_ACCURACY = 0.5
"""Of the common way, for the law under division by the standard deviation."""
_QUANTILE_NAMES = [f"{quantile:.0%}" for quantile in QUANTILES]


def labelled_content(labelled: Labelled, seen: Sequence[Seen], group_size: int) -> dict[str, Any]:
    """What `--json` prints of labelled pairs."""
    same, pairs = labelled.same, labelled.pairs
    return {
        "rows": labelled.rows,
        "left_out_rows": labelled.left_out,
        "pairs": len(same),
        "same": int(same.sum()),
        "different": int((~same).sum()),
        "equal_texts": int((pairs.first == pairs.second).sum()),
        "group_size": group_size,
        "encoders": [_of_labelled(labelled, one, group_size) for one in seen],
    }


def recorded_content(recorded: Recorded, seen: Sequence[Seen]) -> dict[str, Any]:
    """What `--json` prints of a run's records."""
    equal = recorded.equal_reward
    return {
        "steps": recorded.steps,
        "groups": recorded.groups,
        "unscored_groups": recorded.unscored,
        "unreadable_lines": recorded.unreadable,
        "shortened_texts": recorded.shortened,
        "pairs": len(equal),
        "equal_texts": int((recorded.pairs.first == recorded.pairs.second).sum()),
        "encoders": [
            {
                **_about(one),
                "pairs_of": [
                    {"pairs_of": name, **_distribution(one.cosine[of])}
                    for name, of in (
                        ("all", np.ones_like(equal)),
                        ("equal reward", equal),
                        ("different reward", ~equal),
                    )
                    if of.any()
                ],
            }
            for one in seen
        ],
    }


def labelled_text(content: dict[str, Any]) -> str:
    """What the command prints of labelled pairs."""
    size = content["group_size"]
    rows = [
        [
            of["encoder"],
            f"{of['auc']:.3f}",
            "-" if of["auc_interval"] is None else "{:.3f} to {:.3f}".format(*of["auc_interval"]),
            f"{of['survival_ratio']['dr_grpo']:.2f}",
            f"{of['survival_ratio']['grpo']:.2f}",
            "none" if of["cluster_cosine"] is None else f"{of['cluster_cosine']:.3f}",
            "-" if of["balanced_accuracy"] is None else f"{of['balanced_accuracy']:.2f}",
        ]
        for of in content["encoders"]
    ]
    header = ["encoder", "AUC", "95 %", "law, Dr.GRPO", "law, GRPO", "cluster_cosine", "its accuracy"]
    return (
        f"{content['pairs']} pairs, {content['same']} of the {SAME} and {content['different']} of {DIFFERENT}"
        f"{_left_out(content)}.\n\n"
        f"{table(header, rows)}\n"
        f"{_distributions(content)}\n"
        "AUC: the chance that a pair of the same way has the higher cosine; 0.5 says nothing. Interval: bootstrap over "
        "rows.\n"
        "law: the accuracy of a rare way over that of the common one, above which DRA lets it grow from a group of "
        f"{size} that has it once;\n"
        f"of the mean cosines, for GRPO where the common way is right in {COMMON_ACCURACY:g}. At 1 DRA favours no way. "
        "A group is of one prompt: give such pairs.\n"
        "cluster_cosine: the cut of the highest Youden index; its accuracy is balanced, and a little high, as these "
        "pairs chose it.\n"
        f"{_warnings(content)}"
    )


def recorded_text(content: dict[str, Any]) -> str:
    """What the command prints of a run's records."""
    counts = [
        f"{content[key]} {what}"
        for key, what in (
            ("unscored_groups", "groups without scores"),
            ("unreadable_lines", "lines that can't be read"),
        )
        if content[key]
    ]
    left_out = f"; left out are {' and '.join(counts)}" if counts else ""
    shortened = ""
    if content["shortened_texts"] and len(content["encoders"]) > 1:
        shortened = (
            f"The record left out the middle of {content['shortened_texts']} texts (dra.record.max_characters): "
            "encoders given here see less than the run's did.\n"
        )
    return (
        f"{content['pairs']} pairs of completions of one group, {content['equal_texts']} of them of equal texts, of "
        f"{content['groups']} groups in {content['steps']} steps{left_out}.\n\n"
        f"{_distributions(content)}\n"
        "Nobody has labelled these pairs: they say how alike completions are, and not whether that means a way. Two\n"
        "right answers may go different ways, and a right and a wrong one the same way. Label some of them, the same\n"
        "way or not, for AUC, law and cluster_cosine.\n"
        f"{shortened}{_warnings(content)}"
    )


def _of_labelled(labelled: Labelled, seen: Seen, group_size: int) -> dict[str, Any]:
    same, cosine = labelled.same, seen.cosine
    within, across = float(cosine[same].mean()), float(cosine[~same].mean())
    cut = cluster_cosine(cosine, same)
    kinds = np.array(labelled.kind)
    parts: list[tuple[bool, str | None]] = []
    for label in (True, False):
        of_label = dict.fromkeys(kinds[same == label].tolist())
        # Where there is one kind alone, it is all.
        parts += [(label, None), *((label, kind) for kind in of_label if len(of_label) > 1)]
    return {
        **_about(seen),
        "auc": auc(cosine, same),
        "auc_interval": auc_interval(cosine, same, labelled.row),
        "survival_ratio": {
            "dr_grpo": survival_ratio(within, across, group_size),
            "grpo": normalised_survival_ratio(within, across, group_size, COMMON_ACCURACY),
            "batch_baseline": batch_survival_ratio(within, across, group_size),
        },
        "cluster_cosine": None if cut is None else cut[0],
        "balanced_accuracy": None if cut is None else cut[1],
        "pairs_of": [
            {
                "pairs_of": SAME if label else DIFFERENT,
                "kind": kind,
                **_distribution(cosine[of]),
                "auc": None if label else auc(cosine[same | of], same[same | of]),
            }
            for label, kind in parts
            for of in [(same == label) & (np.ones_like(same) if kind is None else kinds == kind)]
        ],
    }


def _about(seen: Seen) -> dict[str, Any]:
    return {
        "encoder": seen.name,
        "about": seen.about,
        "empty_texts": seen.empty,
        "truncated_tokens_frac": seen.truncated_tokens_frac,
        "unknown_tokens_frac": seen.unknown_tokens_frac,
    }


def _distribution(cosine: NDArray[np.float64]) -> dict[str, Any]:
    quantiles = np.quantile(cosine, QUANTILES).tolist()
    return {
        "pairs": len(cosine),
        "mean": float(cosine.mean()),
        "quantiles": dict(zip(_QUANTILE_NAMES, quantiles, strict=True)),
    }


def _distributions(content: dict[str, Any]) -> str:
    labelled = "same" in content
    rows = [
        [
            of["encoder"],
            part["pairs_of"] + (f": {part['kind'] or 'no kind'}" if part.get("kind") is not None else ""),
            str(part["pairs"]),
            *(["" if part["auc"] is None else f"{part['auc']:.3f}"] if labelled else []),
            f"{part['mean']:.3f}",
            *(f"{quantile:.3f}" for quantile in part["quantiles"].values()),
        ]
        for of in content["encoders"]
        for part in of["pairs_of"]
    ]
    header = ["encoder", "cosines of", "pairs", *(["AUC"] if labelled else []), "mean", *_QUANTILE_NAMES]
    return table(header, rows, left=2)


def _left_out(content: dict[str, Any]) -> str:
    equal, rows = content["equal_texts"], content["left_out_rows"]
    return (f"; {equal} are of equal texts, whose cosine is 1 with any encoder" if equal else "") + (
        f"; {rows} of {content['rows']} rows are left out" if rows else ""
    )


def _warnings(content: dict[str, Any]) -> str:
    lines = []
    for of in content["encoders"]:
        if of["truncated_tokens_frac"]:
            lines.append(
                f"{of['encoder']} does not see {of['truncated_tokens_frac']:.1%} of the tokens: no window holds them."
            )
        if of["unknown_tokens_frac"]:
            lines.append(f"{of['encoder']} does not know {of['unknown_tokens_frac']:.1%} of the tokens.")
        if of["empty_texts"]:
            lines.append(f"{of['encoder']} has a zero vector for {of['empty_texts']} texts; their cosines count as 0.")
    return "".join(f"{line}\n" for line in lines)
