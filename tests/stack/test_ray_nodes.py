"""`verl-dra doctor` on a real Ray cluster of two nodes, of which one lacks the package and later stands still; and on
file systems that are really full."""

from __future__ import annotations

import json
import sys
import sysconfig
from pathlib import Path

import isolated
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCENARIO = Path(__file__).with_name("ray_nodes.sh")


def interpreter_without_the_package(folder: Path) -> Path:
    """This interpreter with everything that is installed in it, but nothing that is there by a .pth file, as an
    editable install is."""
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "installed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.symlink_to(Path(sys.executable).resolve())
    (folder / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
    return python


def test_a_node_without_the_package_and_one_that_stands_still_are_named(tmp_path: Path) -> None:
    python = interpreter_without_the_package(tmp_path / "venv")
    log = tmp_path / "log.txt"
    isolated.run(
        ["bash", str(SCENARIO), str(python)],
        log=log,
        cwd=tmp_path,
        environment={"VERL_PLATFORM": "cpu"},
        timeout_s=800,
    )
    shown = log.read_text(errors="replace")
    assert "BOTH 1\n" in shown, shown[-3000:]
    checks = json.loads((tmp_path / "both.json").read_text())["checks"]
    nodes = sorted((check for check in checks if check["check"].startswith("node ")), key=lambda check: check["state"])
    assert [check["state"] for check in nodes] == ["fail", "ok"], nodes
    assert nodes[0]["found"] == "verl_dra is not installed"
    assert nodes[0]["fix"].startswith("pip install 'verl_dra[train]' on that node")
    assert nodes[1]["found"].startswith("verl_dra ")
    assert [check["found"] for check in checks if check["check"] == "Ray cluster"] == ["2 nodes at 127.0.0.1:6379"]

    assert "STOPPED 0\n" in shown, shown[-3000:]
    stopped = json.loads((tmp_path / "stopped.json").read_text())
    found = {check["name"]: check for check in stopped}
    assert found[nodes[0]["check"]]["found"] == "gave no answer within 15 s"
    assert "restart its Ray" in found[nodes[0]["check"]]["fix"]
    assert found[nodes[1]["check"]]["state"] == "ok"


def test_file_systems_that_are_really_full_are_told(tmp_path: Path) -> None:
    script = """
for place in small /dev/shm /tmp/ray; do mkdir -p $place; mount -t tmpfs -o size=8m tmpfs $place; done
python -c 'from verl_dra.doctor import machine
for check in (*machine.folder("outputs", "small/out"), *machine.ray_folder(), *machine.shared_memory()):
    print(check.name, check.state, check.found, sep="|")'
"""
    log = tmp_path / "log.txt"
    done = isolated.run(["bash", "-c", script], log=log, cwd=tmp_path, environment={}, timeout_s=300)
    assert done.returncode == 0, log.read_text()
    told = [line.split("|") for line in log.read_text().splitlines() if "|" in line]
    assert [(name, state) for name, state, _ in told] == [
        ("outputs", "fail"),
        ("Ray's temp folder", "fail"),
        ("/dev/shm", "warn"),
    ]
    assert all("8 MiB free" in found for _, _, found in told)
