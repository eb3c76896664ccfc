"""The command `verl-dra` answers at once: it imports what was asked for."""

from __future__ import annotations

import json
import subprocess
import sys

from verl_dra.cli import COMMANDS

# What takes a second or more to import, or brings what does.
# Its choices and defaults are those of the algorithm, which is torch's.
NEEDS_TORCH = {"simulate"}
HEAVY = ("torch", "transformers", "verl", "ray", "vllm", "pandas", "pyarrow", "scipy", "plotly", "matplotlib")
SHOW_HELP = """
import io, json, sys
from contextlib import redirect_stdout
from verl_dra.cli import main
found = {}
for arguments in json.loads(sys.argv[1]):
    with redirect_stdout(io.StringIO()) as shown:
        try:
            main(arguments)
        except SystemExit as end:
            assert end.code == 0
    found[" ".join(arguments)] = [name for name in json.loads(sys.argv[2]) if name in sys.modules], shown.getvalue()
print(json.dumps(found))
"""


def test_help_imports_nothing_that_takes_its_time() -> None:
    asked = [
        ["--help"],
        ["train", "--help"],
        *([command, "--help"] for command in COMMANDS if command not in NEEDS_TORCH),
    ]
    command = [sys.executable, "-c", SHOW_HELP, json.dumps(asked), json.dumps(HEAVY)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert {arguments: modules for arguments, (modules, _) in found.items() if modules} == {}
    assert all(command in found["--help"][1] for command in COMMANDS)
    assert all("ptions" in text and len(text) > 300 for _, text in found.values())
