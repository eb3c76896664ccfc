r"""From what people and models write to LaTeX that math-verify reads: the answer in a text, and its notation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from verl_dra.rewards import thinking

_BOX = re.compile(r"\\f?box(?:ed)?(?![a-zA-Z])\s*")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$]|\\[()])*(?:[,;]|[,;]?\s*(?:and|or)\b)(?:[\s$]|\\[()])*(?:[a-zA-Z](?:_\w+)?\s*=\s*)?"
)
"""Boxes with this between them are one answer of several parts."""
_PERCENT = re.compile(r"[\s$]*\\?%")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$([^$]+?)(?<!\\)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
_DELIMITERS = re.compile(r"(?<!\\)\$|(?<!\\)\\[()\[\]]")
_MARK = re.compile(r"^[ \t]*####[ \t]*(\S.*)$", re.MULTILINE)
_TAGS = re.compile(r"<answer>((?:(?!<answer>).)*)</answer>", re.DOTALL)
_SAID = re.compile(r"\banswers?\b[^.\n$\\:]{0,40}?(?:\b(?:is|are)\b:?|:)[\s*]*(?:\bis\b:?\s*)?(?=\S)", re.IGNORECASE)
_END_OF_SAYING = re.compile(r"\n|[.;!?](?:\s|$)|\*\*|,?\s(?:because|since|as|which|so|where)\s")
_NO_WORDS = re.compile(r"(?:\\[a-zA-Z]+|[a-zA-Z](?![a-zA-Z])|[^a-zA-Z\n]){1,80}")
_LONGEST_SAID = 80
_LOOKED_AT = 4000
"""Characters from the end in which an answer without a box is looked for."""


def written_answer(text: str) -> str | None:
    r"""The final answer of a completion as it stands there, or None where it has none.

    What follows the last `</think>` counts. There it is the last box, with those that it is joined to by a comma, `and`
    or `or`; a box that the text's end cuts off is none, and nothing before it counts. Without a box it is what follows
    `####`, is between answer tags, or follows 'answer is' or 'Answer:'; then a formula of the last line; then a text of
    one word or no words as a whole. A number in passing is no answer.
    """
    _, text = thinking.parted(text)
    found = _boxed(text)
    if found.there:
        return found.content
    text = text[-_LOOKED_AT:].strip()
    for pattern in (_MARK, _TAGS):
        if marked := pattern.findall(text):
            return _inner(marked[-1])
    if (sayings := list(_SAID.finditer(text))) and (said := _said(text[sayings[-1].end() :])):
        return said
    formulas = list(_FORMULA.finditer(text))
    if formulas and "\n" not in text[formulas[-1].end() :]:
        return _content_of(formulas[-1])
    return _inner(text) if len(text.split()) == 1 or _NO_WORDS.fullmatch(text) else None


def written_gold(gold: str) -> str:
    """The answer of a gold answer or of a worked solution: its last box or mark, or the whole of it."""
    found = _boxed(gold)
    if found.there and found.content is not None:
        return found.content
    if marked := _MARK.findall(gold):
        return str(marked[-1])
    bare = _DELIMITERS.sub(" ", gold).strip()
    if bare != gold.strip() and re.match(r"[A-Za-z]{2,}\s", bare):
        return written_answer(gold) or bare
    return bare


def latex(written: str) -> str:
    """An answer in the notation that math-verify reads: without units, separators and what else it misreads."""
    for change in _CHANGES:
        written = change(written)
    return written


@dataclass(frozen=True)
class _Boxed:
    there: bool
    content: str | None
    """None where the last box is cut off."""


def _boxed(text: str) -> _Boxed:
    parts: list[str] = []
    start = 0
    for box in reversed(list(_BOX.finditer(text))):
        content, end = _content(text, box.end())
        if parts and not _BETWEEN_BOXES.fullmatch(text, end, start):
            break
        if content is None:
            return _Boxed(True, ", ".join(parts) or None)
        if content.strip():
            parts.insert(0, content.strip() + (r"\%" if _PERCENT.match(text, end) else ""))
            start = box.start()
    return _Boxed(bool(parts), ", ".join(dict.fromkeys(parts)))


def _content(text: str, start: int) -> tuple[str | None, int]:
    """What a box whose braces begin at `start` holds, and where it ends; None where it is cut off."""
    if not text.startswith("{", start):
        bare = re.compile(r"[^\s$,;{}]*").match(text, start)
        assert bare
        return bare[0], bare.end()
    depth = 0
    for brace in _BRACES.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start + 1 : brace.start()], brace.end()
    # A brace was forgotten where the formula or line ends in spite of it.
    ending = re.compile(r"\$|\n|\\\)|\\\]").search(text, start)
    if ending is None:
        return None, len(text)
    content = text[start + 1 : ending.start()]
    missing = sum({"{": 1, "}": -1}.get(brace[0], 0) for brace in _BRACES.finditer(content))
    return content + "}" * missing, ending.start()


def _inner(marked: str) -> str | None:
    """An answer without the delimiters of its formula."""
    return _DELIMITERS.sub(" ", marked).strip() or None


def _content_of(formula: re.Match[str]) -> str:
    return str(formula[formula.lastindex or 0])


def _said(after: str) -> str | None:
    """What is said to be the answer: formulas, or the words to the end of the sentence."""
    formulas = []
    start = 0
    while formula := _FORMULA.match(after, start):
        formulas.append(_content_of(formula))
        between = _BETWEEN_BOXES.match(after, formula.end())
        # What stands between two formulas includes the first sign of the second.
        start = between.end() - len(between[0]) + len(between[0].rstrip("$\\([")) if between else len(after)
    if formulas:
        return ", ".join(formulas)
    end = _END_OF_SAYING.search(after)
    said = after[: end.start() if end else None].strip()
    return _inner(said) if len(said) <= _LONGEST_SAID else None


_UNICODE = str.maketrans(
    {
        "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{MULTIPLICATION SIGN}": r"\times ", "·": r"\cdot ", "÷": "/",
        "\N{DOT OPERATOR}": r"\cdot ", "π": r"\pi ", "θ": r"\theta ", "Ω": r"\Omega ", "∞": r"\infty ", "≤": r"\le ",
        "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "\N{UNION}": r"\cup ",
        "∩": r"\cap ", "\N{ELEMENT OF}": r"\in ", "∅": r"\emptyset ", "±": r"\pm ", "°": r"^{\circ}",
        "\N{DOUBLE-STRUCK CAPITAL R}": r"\mathbb{R}",
        "\N{FULLWIDTH PERCENT SIGN}": "%", "\N{FULLWIDTH COMMA}": ",", "\N{FULLWIDTH LEFT PARENTHESIS}": "(",
        "\N{FULLWIDTH RIGHT PARENTHESIS}": ")", "“": "", "”": "", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
    }
)  # fmt: skip
_LARGE = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_TEXT = r"(?:\\mu\s*)?\\text\{(?!\s*[aApP]\.?[mM]\b)(?:[^{}]|\{[^{}]*\})*\}"
_UNIT = (
    r"(?:sq(?:uare|\.)?\s*|cubic\s*)?(?:[kcdmnµ]m|kg|mg|lbs?|oz|ft|in|yd|mi|ml|mL|k?Hz|kW|k?Pa|k?J|mol|min|hrs?|sec|mph"
    r"|k?eV|rad|deg|(?:centi|kilo|milli)?(?:met(?:er|re)|gram|lit(?:er|re))s?|degrees?|units?)(?![a-zA-Z])"
)
_POWER_OF_UNIT = r"(?:\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d))?"
_UNITS = re.compile(
    # After a number: text, a unit, and apart from it a word or the letter of a unit. Other bare letters are variables.
    rf"(?<=[\w)}}\]|!%])\s*(?:\\frac\{{{_TEXT}{_POWER_OF_UNIT}\}}\{{{_TEXT}{_POWER_OF_UNIT}\}}"
    rf"|(?:{_TEXT}|(?<![a-zA-Z]){_UNIT}|(?<=\d\s)(?:[msghLNJWVK]|[a-zA-Z]{{3,}}(?:\s[a-zA-Z]{{3,}})?|\\Omega)(?![a-zA-Z]))"
    rf"{_POWER_OF_UNIT}(?:(?:\s|\\cdot(?![a-zA-Z])|/)+(?:{_TEXT}|[a-zA-Z]{{1,3}}(?![a-zA-Z])){_POWER_OF_UNIT})*)"
    r"(?=\s*(?:$|[,;]|\\\}|[)\]]))"
)
_TRIGONOMETRIC = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)")
_DEGREES = r"\s*\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![a-zA-Z])"


def _replace(pattern: str, by: str | Callable[[re.Match[str]], str]) -> Callable[[str], str]:
    compiled = re.compile(pattern)
    return lambda written: compiled.sub(by, written)


def _superscript(match: re.Match[str]) -> str:
    return "^{" + unicodedata.normalize("NFKC", match[0]).translate(_UNICODE) + "}"


def _large(match: re.Match[str]) -> str:
    """The word of a large number as its power of ten, and the word of what is counted as text."""
    power = rf"\times 10^{{{_LARGE[match[1]]}}}"
    if "{" in match[0]:
        return rf"{power}\text{{{match[2] or ''}"
    return rf"{power}\text{{{match[2]}}}" if match[2] else f"{power} "


def _fraction(match: re.Match[str]) -> str:
    above, below = unicodedata.normalize("NFKC", match[0]).split("\N{FRACTION SLASH}")
    return rf"\frac{{{above}}}{{{below}}}"


def _repeating(match: re.Match[str]) -> str:
    whole, once, again = match.groups()
    below = (10 ** len(again) - 1) * 10 ** len(once)
    above = int(whole + once + again) - int((whole + once) or "0")
    return rf"\frac{{{above}}}{{{below}}}"


def _text(match: re.Match[str]) -> str:
    """Text that is no text: a number, a letter of a choice, a sign or a connective."""
    content = match[1].strip()
    if re.fullmatch(r",?\s*(?:and|or),?", content):
        return f" {content.strip(', ')} "
    if choice := re.fullmatch(r"(?:[Oo]ption|[Cc]hoice)\s+([A-J])", content):
        return choice[1]
    if re.fullmatch(r"[A-J](?:\s*(?:,|and|&)\s*[A-J])+", content):
        return re.sub(r"\s*(?:and|&)\s*", ", ", content)
    # Units and words stay text.
    return content if re.match(r"[\d.\-\\$]|\(?[A-J][).:]|[^a-zA-Z]*$", content) else rf"\text{{{content}}}"


def _without_degrees(written: str) -> str:
    if _TRIGONOMETRIC.search(written):
        return re.sub(rf"(\d+(?:\.\d+)?)(?:{_DEGREES})", r"{\\frac{\1\\pi}{180}}", written)
    return re.sub(rf"(?:{_DEGREES})(?:\s*(?:\\text\{{\s*[CF]\s*\}}|[CF]\b))?", "", written)


def _without_commas(written: str) -> str:
    """Thousands without their commas. In brackets commas part members."""
    if re.search(r"[(\[]|\\\{", written):
        return written
    return re.sub(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])", lambda match: match[0].replace(",", ""), written)


_CHANGES: list[Callable[[str], str]] = [
    lambda written: written.translate(_UNICODE),
    _replace(r"[⁰¹²³⁴-⁹⁺⁻ⁿ]+", _superscript),
    _replace(r"[¼-¾⅐-⅞]", _fraction),
    _replace(r"(?:√|(?<![\\a-zA-Z])sqrt|\\sqrt(?=\s*\())\s*(?:\(([^()]*)\)|(\d+|[a-zA-Z]))", r"\\sqrt{\1\2}"),
    # Spaces and fonts.
    _replace(r"\\(?:begin|end)\{(?:aligned|align\*?|gathered|split)\}|&(?==|\s*=)", ""),
    _replace(r"\\(?:text)?color\s*\{\w+\}|\\(?:[lL]arge|LARGE|[hH]uge|small|bf|rm|it)(?![a-zA-Z])", ""),
    _replace(r"\\!|\\displaystyle|\\(?:left|right)(?=\s*[.])\s*\.", ""),
    _replace(r"(?<!\\)\\(?:[,;: \n]|q?quad(?![a-zA-Z]))|(?<!\\)~|\s+", " "),
    _replace(r"\\(?:text|math)?(?:bf|it|bm|boldsymbol|underline)\s*\{([^{}]*)\}", r"\1"),
    _replace(r"\\(?:text(?:normal|rm|sf|tt|up)?|math(?:rm|sf|tt)|mbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}", _text),
    lambda written: written.strip().strip("*").strip() if written.count("*") % 2 == 0 else written.strip(),
    # Signs that are no part of the value.
    _replace(r"\\?\$|[€£¥₹]", ""),
    _replace(r"\s*(?:\\?%|\\text\{percent(?:age)?\}|\bpercent(?:age)?\b)", r"\\%"),
    lambda written: re.sub(r"(\d+(?:\.\d+)?)\\%", r"\\frac{\1}{100}", written) if written.count("%") > 1 else written,
    _without_degrees,
    _replace(r"^(?:\\text\{(?:about|around|approx\w*\.?|Rs\.?|USD|EUR|.*\bis:?)\}|(?:USD|EUR|Rs\.?)(?=\s*\d))\s*", ""),
    _replace(r"^(?:=|\\approx(?![a-z])|\\sim(?:eq)?(?![a-z])|[a-zA-Z]\s*\\in(?![a-z]))\s*", ""),
    _replace(r"^\(\s*[a-zA-Z](?:\s*,\s*[a-zA-Z])+\s*\)\s*=\s*(?=\()", ""),
    _replace(r"[\s.,;:\\]+$", ""),
    lambda written: written if re.search(r"[(\[]", written) else re.sub(r"(?<=\d)\s*\\cup(?![a-z])", " or ", written),
    # Numbers.
    _replace(r"(?<=\d)\s*(?:\\text\{\s*)?(thousand|million|billion|trillion)(?![a-zA-Z])\s*([a-zA-Z]{3,})?", _large),
    _replace(r"\{,\}", ","),
    _replace(r"(?<![\d.])\d{1,3}(?:,? +\d{3})+(?!\d|\s*/)", lambda m: m[0] if "," in m[0] else m[0].replace(" ", "")),
    _without_commas,
    _replace(r"(?<![\d.])\d{1,3}(?:\.\d{3}){2,}(?![\d.])", lambda m: m[0].replace(".", "")),
    _replace(r"(?<![\w.}])(\d+(?:\.\d+)?|\.\d+)[eE]([+-]?\d+)(?!\w)", r"\1\\times 10^{\2}"),
    _replace(r"(?<![\d.}/^])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d/])", r"\1\\frac{\2}{\3}"),
    _replace(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{(\d+)\}", _repeating),
    # What is written without braces or backslashes.
    _replace(r"\*\*|\^\s*(?=[\d-])", "^"),
    _replace(r"\^(-?\d{2,}|-\d)", r"^{\1}"),
    _replace(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi "),
    _replace(r"\\varnothing(?![a-zA-Z])|\\\{\s*\\\}", r"\\emptyset"),
    lambda written: _UNITS.sub("", written),
    str.strip,
]
