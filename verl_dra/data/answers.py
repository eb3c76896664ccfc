"""Final answers out of worked solutions."""

from __future__ import annotations

import re

from verl_dra.data.problem import BadRowError
from verl_dra.files import shorten

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_END_OF_MATHS = re.compile(r"\$|\\\]|\\\)|\n|$")
_WORD = re.compile(r"(?<![A-Za-z\\{])[A-Za-z]{2,}")
r"""In what stands after a box without braces: prose, and no formula. Commands and what is in their braces are none."""
_NUMBER = re.compile(r"-?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)")


def last_boxed(solution: str) -> str:
    r"""What the last `\boxed{...}` holds, nested braces included.

    MATH also writes `\fbox{...}` and, without braces, `\boxed 5`, which ends where the formula ends; words after that
    are refused, since nothing says where the answer ends.
    """
    boxes = list(_BOX.finditer(solution))
    if not boxes:
        raise BadRowError(r"no \boxed", rf"the solution ends with {shorten(solution[-50:])}")
    start = boxes[-1].end()
    if solution[start : start + 1] == "{":
        answer = solution[start + 1 : _closing_brace(solution, start)].strip()
    else:
        rest = solution[start:]
        end = _END_OF_MATHS.search(rest)
        answer = rest[: end.start() if end else len(rest)].strip().rstrip(".,;").strip()
        if _WORD.search(answer):
            raise BadRowError("box without braces", rf"\boxed is followed by {shorten(answer)}")
    if not answer:
        raise BadRowError("empty answer", rf"nothing is in the last \boxed of {shorten(solution[-50:])}")
    return answer


def after_hashes(answer: str) -> str:
    """The number after GSM8K's last `####`, without the commas between thousands, as veRL's grader compares it."""
    _, hashes, final = answer.rpartition("####")
    if not hashes:
        raise BadRowError("no ####", f"the answer ends with {shorten(answer[-50:])}")
    final = final.strip()
    if not final:
        raise BadRowError("empty answer", "nothing follows ####")
    if not _NUMBER.fullmatch(final):
        raise BadRowError("no number after ####", f"there is {shorten(final)}")
    return final.replace(",", "").removesuffix(".")


def _closing_brace(text: str, start: int) -> int:
    """Where the brace that opens at `start` closes; `\\{` and `\\}` are printed braces and don't count."""
    depth, position = 0, start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    raise BadRowError("unbalanced braces", f"the last box never closes: {shorten(text[start - 7 :])}")
