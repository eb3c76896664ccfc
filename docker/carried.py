"""Holds what an image carries in place while the package is installed over it: torch, vllm, ray and what needs them.

carried.py record FOLDER    before: notes their versions, and writes pip's constraints to FOLDER/constraints.txt
carried.py check FOLDER     after: ends with status 1 if one of them moved or if a requirement is newly unmet
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from fnmatch import fnmatch
from importlib.metadata import distributions
from pathlib import Path

NEEDED = ("torch", "vllm", "ray")
# Compiled for this torch and this CUDA, or what such packages were compiled against.
HELD = (
    *("torch", "torchvision", "torchaudio", "torchcodec", "triton", "xformers", "numpy", "numba"),
    *("vllm*", "sglang*", "ray", "flash*", "apex", "transformer-engine*", "deep-ep", "megatron*", "mbridge"),
    *("nvidia-*", "cuda-*", "cupy-*"),
)


def main(command: str, folder: Path) -> int:
    return {"record": record, "check": check}[command](folder)


def record(folder: Path) -> int:
    versions = installed()
    missing = [name for name in NEEDED if name not in versions]
    if missing:
        return fail(f"the base has no {', '.join(missing)}: take an image of veRL with vLLM as BASE_IMAGE")
    held = {name: version for name, version in versions.items() if is_held(name)}
    (folder / "before.json").write_text(json.dumps({"versions": versions, "unmet": unmet()}))
    (folder / "constraints.txt").write_text("".join(f"{name}=={version}\n" for name, version in sorted(held.items())))
    say("held: " + ", ".join(f"{name} {version}" for name, version in sorted(held.items())))
    return 0


def check(folder: Path) -> int:
    before = json.loads((folder / "before.json").read_text())
    versions = installed()
    moved = [
        f"{name} {version} -> {versions.get(name, 'gone')}"
        for name, version in sorted(before["versions"].items())
        if versions.get(name) != version
    ]
    say("moved: " + (", ".join(moved) or "nothing"))
    faults = [f"moved: {line}" for line in moved if is_held(line.split()[0])]
    faults += [f"newly unmet: {line}" for line in unmet() if line not in before["unmet"]]
    return fail("; ".join(faults)) if faults else 0


def is_held(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in HELD)


def installed() -> dict[str, str]:
    """Versions by normalised name."""
    return {re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower(): found.version for found in distributions()}


def unmet() -> list[str]:
    """What `pip check` complains of; bases that were put together with --no-deps have some."""
    run = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    return [line for line in run.stdout.splitlines() if run.returncode and line.strip()]


def say(text: str) -> None:
    sys.stdout.write(f"carried: {text}\n")


def fail(text: str) -> int:
    sys.stderr.write(f"carried: {text}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
