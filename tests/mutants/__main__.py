"""`make mutants`: small faults put into the package one at a time, and which of them the fast tests don't see.

SAMPLE=60 tries so many of each subject (without it all), SEED=0 says which, MODULES="rows data" of which subjects.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "build" / "mutants"
sys.path.append(str(REPOSITORY / "build" / "cosmic-ray"))

from mutations import Mutation, mutations  # noqa: E402
from subjects import SUBJECTS, Subject  # noqa: E402
from trial import Trials  # noqa: E402

_HEAD = ("subject", "tried", "killed", "timed out", "survived", "equivalent", "killed of the others")


def main() -> None:
    names = os.environ.get("MODULES", "").split() or list(SUBJECTS)
    if unknown := set(names) - set(SUBJECTS):
        sys.exit(f"MODULES: no such subject: {', '.join(sorted(unknown))}; there are {', '.join(SUBJECTS)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    equivalent, trials, known = _equivalent(), Trials(REPOSITORY, FOLDER), Known()
    table, survivors = [], []
    for name in names:
        found = _sample(SUBJECTS[name], trials.root)
        same = [
            mutant for mutant in found if {(mutant.file, mutant.old, new) for new in (mutant.new, None)} & equivalent
        ]
        verdicts = _verdicts(name, [mutant for mutant in found if mutant not in same], trials, known)
        survivors += [mutant for mutant, verdict in verdicts if verdict == "survived"]
        of = {verdict: sum(verdict == one for _, one in verdicts) for verdict in ("killed", "timed out", "survived")}
        table.append((name, len(found), *of.values(), len(same)))
    table.append(("all", *(sum(column) for column in list(zip(*table, strict=True))[1:])))
    text = "\n".join(
        [
            *(f"{mutant.file}:{mutant.line}\n- {mutant.old}\n+ {mutant.new}\n" for mutant in survivors),
            _line(_HEAD),
            _line(["---"] * len(_HEAD)),
            *(_line([*row, f"{(row[2] + row[3]) / max(row[1] - row[5], 1):.0%}"]) for row in table),
        ]
    )
    _say(f"\n{text}")
    (FOLDER / "table.md").write_text(text + "\n")


def _sample(subject: Subject, root: Path) -> list[Mutation]:
    seed, size = os.environ.get("SEED", "0"), int(os.environ.get("SAMPLE") or 0) or None
    return list(itertools.islice(mutations(root, subject.files(root), seed), size))


def _verdicts(name: str, mutants: list[Mutation], trials: Trials, known: Known) -> list[tuple[Mutation, str]]:
    tests = SUBJECTS[name].paths()
    version = _version(trials.root, tests)
    limit_s = 0.0
    verdicts = []
    for number, mutant in enumerate(mutants, 1):
        verdict = known.verdict(mutant, version)
        if verdict is None:
            if not limit_s:
                clean = trials.clean(tests)
                if clean.code != 0:
                    sys.exit(f"{name}: {clean.by or 'the tests'} fails without a mutation; see {trials.said}")
                limit_s = 4 * clean.seconds + 10
            outcome = trials.run_with(mutant.file, mutant.text, tests, limit_s)
            verdict = {None: "timed out", 0: "survived"}.get(outcome.code, "killed")
            known.add(mutant, version, verdict, outcome.by)
            where = f"{mutant.file}:{mutant.line}"
            _say(f"{name} {number}/{len(mutants)} {verdict} after {outcome.seconds:.1f} s {where}")
        verdicts.append((mutant, verdict))
    return verdicts


class Known:
    """Verdicts on disk. One stays while the file is what it was; that it survived, while the tests are too."""

    def __init__(self) -> None:
        self._path = FOLDER / "verdicts.jsonl"
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        self._verdicts = {entry["key"]: entry for entry in map(json.loads, lines)}

    def verdict(self, mutant: Mutation, version: str) -> str | None:
        entry = self._verdicts.get(mutant.key)
        if entry is None or (entry["verdict"] == "survived" and entry["tests"] != version):
            return None
        return str(entry["verdict"])

    def add(self, mutant: Mutation, version: str, verdict: str, by: str) -> None:
        what = {"file": mutant.file, "line": mutant.line, "old": mutant.old, "new": mutant.new}
        entry = {"key": mutant.key, "tests": version, "verdict": verdict, "by": by, **what}
        self._verdicts[mutant.key] = entry
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def _version(root: Path, tests: list[str]) -> str:
    helpers = sorted(path for path in (root / "tests").glob("*.py") if not path.name.startswith("test_"))
    return hashlib.sha256(
        b"".join(path.read_bytes() for path in [root / test.partition("::")[0] for test in tests] + helpers)
    ).hexdigest()


def _equivalent() -> set[tuple[str, str, str | None]]:
    """(file, line, mutation of it) of those that change nothing a test may see; None for every mutation of the line."""
    listed = yaml.safe_load((Path(__file__).parent / "equivalent.yaml").read_text()) or []
    return {(entry["file"], entry["line"], entry.get("mutation")) for entry in listed}


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
