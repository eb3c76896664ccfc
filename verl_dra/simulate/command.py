"""The command `verl-dra simulate`: its options, and which scene they play."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from verl_dra.algorithm import SMI_FUNCTIONS, NegativeRewards
from verl_dra.simulate.group_report import GroupReport
from verl_dra.simulate.group_scene import GroupScene, StandardDeviation, play_group
from verl_dra.simulate.options import OptionError, add_option, read_settings, refuse_options_of
from verl_dra.simulate.policy_report import PolicyReport
from verl_dra.simulate.policy_scene import PolicyScene, play_policy
from verl_dra.simulate.scoring import Among, Estimator, Scoring, VerlUnavailableError
from verl_dra.terminal.pictures import PictureError, check_picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options of `verl-dra simulate`."""
    parser.add_argument("--scene", choices=("group", "policy"), default="group", help="what to show (default: group)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw a picture (.png, .svg or .pdf)")

    both = parser.add_argument_group("both scenes")
    add_option(both, "--group-size", GroupScene, "completions in a group", type=int)
    add_option(both, "--wrong-reward", GroupScene, "reward of a wrong answer; a right one has 1", type=float)
    add_option(both, "--seed", GroupScene, "of the vectors (group) or of the sampled groups (policy)", type=int)
    add_option(both, "--smi", Scoring, "how similarity to the others is measured", choices=tuple(SMI_FUNCTIONS))
    add_option(
        both, "--negative-rewards", Scoring, "what DRA does with rewards below 0", choices=get_args(NegativeRewards)
    )
    add_option(both, "--estimator", Scoring, "veRL's advantage estimator, for both sides", choices=get_args(Estimator))
    add_option(both, "--strength", Scoring, "what weights are raised to the power of; 0 is no DRA", type=float)
    add_option(both, "--among", Scoring, "answers among which similarity is measured", choices=get_args(Among))
    add_option(both, "--cosine-power", Scoring, "what cosines are raised to the power of", type=float)
    add_option(both, "--spread-floor", Scoring, "a spread of SMI / (n - 1) below this counts as none", type=float)
    add_option(both, "--epsilon", Scoring, "what GRPO adds to a standard deviation", type=float)

    group = parser.add_argument_group("scene group")
    add_option(
        group, "--keep-scale", Scoring, "divide adjusted rewards by the group's mean weight", action="store_true"
    )
    add_option(group, "--clones", GroupScene, "right answers that are near-clones of each other", type=int)
    add_option(group, "--noise", GroupScene, "standard deviation of the clones' noise", type=float)
    add_option(
        group, "--std", GroupScene, "standard deviation that GRPO divides by", choices=get_args(StandardDeviation)
    )

    policy = parser.add_argument_group("scene policy")
    add_option(policy, "--modes", PolicyScene, "right ways of reasoning, beside a wrong one", type=int)
    add_option(
        policy,
        "--accuracies",
        PolicyScene,
        "of the modes, such as 0.6,0.6,0.4, in the place of right modes and a wrong one",
        type=_numbers,
        metavar="A,B,...",
    )
    add_option(
        policy, "--start-ratio", PolicyScene, "start probability of a right mode over the one before", type=float
    )
    add_option(policy, "--wrong-start", PolicyScene, "start probability of the wrong mode", type=float)
    add_option(policy, "--clone-cosine", PolicyScene, "cosine of two completions of one mode", type=float)
    add_option(policy, "--mode-cosine", PolicyScene, "cosine of completions of two modes", type=float)
    add_option(policy, "--steps", PolicyScene, "gradient steps", type=int)
    add_option(policy, "--lr", PolicyScene, "learning rate, on the logits", type=float)
    add_option(
        policy, "--sampled", PolicyScene, "sample N groups a step (default: the exact gradient)", type=int, metavar="N"
    )


def run(args: argparse.Namespace) -> int:
    """Play the scene of `args`. 0: shown; 1: something is not installed or not writable; 2: impossible options."""
    try:
        if args.plot is not None:
            check_picture(args.plot)
        report = _play(args)
        if args.plot is not None:
            report.figure().savefig(args.plot, dpi=160)
    except (OptionError, PictureError) as error:
        sys.stderr.write(f"verl-dra simulate: error: {error}\n")
        return 2
    except (VerlUnavailableError, OSError) as error:
        sys.stderr.write(f"verl-dra simulate: error: {error}\n")
        return 1
    if args.json:
        options = asdict(report.result.scene) | asdict(report.result.scoring)
        sys.stdout.write(json.dumps({"scene": args.scene, "options": options, **report.content()}, indent=2) + "\n")
        return 0
    sys.stdout.write(report.text())
    if args.plot is not None:
        sys.stdout.write(f"\nPicture: {args.plot}\n")
    return 0


def _play(args: argparse.Namespace) -> GroupReport | PolicyReport:
    scoring = read_settings(Scoring, args)
    if args.scene == "policy":
        if hasattr(args, "accuracies"):
            vars(args).setdefault("modes", len(args.accuracies))
            vars(args).setdefault("wrong_start", 0.0)
        refuse_options_of(GroupScene, (PolicyScene, Scoring), args, "is an option of --scene group alone")
        if hasattr(args, "keep_scale"):
            raise OptionError("--keep-scale is an option of --scene group alone, whose group is the batch")
        return PolicyReport(play_policy(read_settings(PolicyScene, args), scoring))
    refuse_options_of(PolicyScene, (GroupScene, Scoring), args, "is an option of --scene policy alone")
    return GroupReport(play_group(read_settings(GroupScene, args), scoring))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))
