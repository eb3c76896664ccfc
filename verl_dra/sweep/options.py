"""Options of sbatch, read as sbatch reads them: getopt_long, with glued short options and abbreviated long ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from verl_dra.sweep.folder import SweepError

# Slurm 22.05's, as its sbatch takes them. One that is not among them (a newer Slurm's) is passed on as it stands.
_ONES_WITH_VALUE = """
account acctg-freq array batch bb bbf begin chdir cluster cluster-constraint clusters comment constraint container
context core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency distribution
error exclude export export-file extra-node-info gid gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket
gpus-per-task gres gres-flags hint input job-name kill-on-invalid-dep licenses mail-type mail-user mcs-label mem
mem-bind mem-per-cpu mem-per-gpu mincpus network nodefile nodelist nodes ntasks ntasks-per-core ntasks-per-gpu
ntasks-per-node ntasks-per-socket ntasks-per-tres open-mode output partition power prefer priority profile qos
reservation signal sockets-per-node switches tasks-per-node thread-spec threads-per-core time time-min tmp uid
wait-all-nodes wckey wrap
"""
# Some take one after an equal sign, none as the next word.
_ONES_WITHOUT = """
contiguous exclusive get-user-env help hold ignore-pbs nice no-kill no-requeue overcommit oversubscribe parsable
propagate quiet reboot requeue spread-job test-only usage use-min-nodes verbose version wait
"""
_WITH_VALUE, _WITHOUT_VALUE = frozenset(_ONES_WITH_VALUE.split()), frozenset(_ONES_WITHOUT.split())
_LONG = _WITH_VALUE | _WITHOUT_VALUE
_SHORT = {
    **{"A": "account", "a": "array", "b": "begin", "B": "extra-node-info", "C": "constraint", "c": "cpus-per-task"},
    **{"D": "chdir", "d": "dependency", "e": "error", "F": "nodefile", "G": "gpus", "H": "hold", "h": "help"},
    **{"i": "input", "J": "job-name", "k": "no-kill", "L": "licenses", "M": "clusters", "m": "distribution"},
    **{"N": "nodes", "n": "ntasks", "O": "overcommit", "o": "output", "p": "partition", "Q": "quiet", "q": "qos"},
    **{"S": "core-spec", "s": "oversubscribe", "t": "time", "V": "version", "v": "verbose", "W": "wait"},
    **{"w": "nodelist", "x": "exclude"},
}
# Options of which sbatch heeds one alone.
_SAME = {"mem-per-cpu": "mem", "mem-per-gpu": "mem", "no-requeue": "requeue", "tasks-per-node": "ntasks-per-node"}

_REFUSED = {
    **dict.fromkeys(("array", "output"), "array and output are the sweep's own"),
    "wrap": "what runs is the sweep's own; --script replaces ray.sbatch",
    "test-only": "it submits nothing; --dry-run of verl-dra sweep shows what would be submitted",
    **dict.fromkeys(("help", "usage", "version"), "it submits nothing"),
    "quiet": "the sweep must know the id of its job, which sbatch would not say",
    "wait": "a sweep does not wait for its jobs; verl-dra sweep --status shows how far they are",
}


@dataclass(frozen=True)
class Option:
    """One option."""

    name: str
    """Its long name, written out."""
    word: str
    """As sbatch is given it, with its value."""

    @property
    def long(self) -> str:
        """`--name=value`, or `--name`."""
        _, equals, value = self.word.partition("=")
        return f"--{self.name}{equals}{value}"


def parse(words: Sequence[str]) -> list[Option]:
    """The options in `words`, a word each.

    Raises:
        SweepError: a word is no option, could be several, or is one that a sweep can't be submitted with.
    """
    options = list(_parsed(words))
    for option in options:
        if why := _REFUSED.get(option.name):
            raise SweepError(f"--sbatch {option.word}: {why}")
    return options


def replaced(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """The options `old` with those of `new` in the place of the same ones."""
    given = parse(new)
    same = {_SAME.get(option.name, option.name) for option in given}
    kept = [option for option in parse(old) if _SAME.get(option.name, option.name) not in same]
    return [option.word for option in (*kept, *given)]


def _parsed(words: Sequence[str]) -> Iterable[Option]:
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if re.match(r"--[A-Za-z]", word):
            yield _long(word, rest)
        elif re.match(r"-[A-Za-z]", word):
            yield from _short(word, rest)
        else:
            raise SweepError(f"--sbatch: {word!r} is no option of sbatch, which would take it for the job's script")


def _long(word: str, rest: list[str]) -> Option:
    given, equals, _ = word.removeprefix("--").partition("=")
    meant = [given] if given in _LONG else sorted(name for name in _LONG if name.startswith(given))
    if len(meant) > 1:
        raise SweepError(f"--sbatch --{given} can be {', '.join(meant)}; write it out")
    name = meant[0] if meant else given
    if equals or name in _WITHOUT_VALUE:
        return Option(name, word)
    if name in _WITH_VALUE and not rest:
        raise SweepError(f"--sbatch {word} has no value")
    # Of an unknown option, what does not look like the next one is the value.
    if name in _WITH_VALUE or (rest and not rest[0].startswith("-")):
        return Option(name, f"{word}={rest.pop(0)}")
    return Option(name, word)


def _short(word: str, rest: list[str]) -> Iterable[Option]:
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        if (name := _SHORT.get(letter)) is None:
            raise SweepError(f"--sbatch {word}: sbatch has no option -{letter}")
        if name in _WITH_VALUE:
            if not letters and not rest:
                raise SweepError(f"--sbatch -{letter} has no value")
            yield Option(name, f"--{name}={letters or rest.pop(0)}")
            return
        if letter == "k" and letters:  # its value is optional, so a glued one alone
            yield Option(name, f"--{name}={letters}")
            return
        yield Option(name, f"--{name}")
