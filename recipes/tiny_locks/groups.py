"""Write groups of worked answers with their ways, for `verl-dra calibrate`: does the encoder see the ways?

    python recipes/tiny_locks/groups.py FILE.jsonl

Each of the 24 groups is of one question: two answers a way, with slips and other filler words.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from tiny_locks.task import WAYS, questions, sample_along


def groups(count: int = 24, seed: int = 0) -> list[dict[str, list[str]]]:
    """`count` rows as `verl-dra calibrate` reads them."""
    rng = random.Random(seed)
    ways = [way for way in WAYS for _ in range(2)]
    return [
        {"texts": [sample_along(question, way, rng) for way in ways], "ways": ways}
        for question in rng.sample(list(questions()), count)
    ]


def main() -> int:
    """The exit status."""
    if len(sys.argv) != 2:
        sys.stderr.write(f"usage: {Path(sys.argv[0]).name} FILE.jsonl\n")
        return 2
    Path(sys.argv[1]).write_text("".join(json.dumps(row) + "\n" for row in groups()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
