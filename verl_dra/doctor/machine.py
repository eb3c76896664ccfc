"""This machine: disks, shared memory, Ray's temporary folder and Ray's authentication."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from verl_dra.doctor.check import Check, fail, gib, ok, skip, warn

# Logs of a short run and of Ray's session were at most 15 MB in the runs of tests/stack; less than this ends one early.
_STOPS_BELOW = 32 * 2**20
LITTLE = 2**30
# Ray refuses to spill objects when a file system is fuller than this (RAY_local_fs_capacity_threshold).
_FULL = 0.95
# Ray 2.60 (_private/utils.py, validate_socket_filepath).
_SOCKET_BYTES = 107
# Ray 2.60 (_private/ray_constants.py): its share of the memory for objects, at most 200 GB, and the explicit size above
# which it refuses to start on a smaller /dev/shm.
_OBJECT_STORE_SHARE, _OBJECT_STORE_MOST, _OBJECT_STORE_STRICT = 0.3, 200 * 10**9, 10**10
# In Ray's session on each node, its copies of the working directories of jobs (Ray 2.60, _private/runtime_env).
_COPIES_OF_JOBS = "working_dir_files"
_OTHER_RAYS = "other Ray clusters"


def folder(name: str, path: str | Path) -> Iterator[Check]:
    """That a run can write to the folder `path`, or make it, and that it stays."""
    if lost := goes_with_the_job(name, path, "hydra.run.dir"):
        yield lost
        return
    found = _nearest(Path(os.path.expanduser(path)))
    if not found.is_dir() or not os.access(found, os.W_OK | os.X_OK):
        yield fail(name, f"{found} can't be written to", "choose another folder or change its permissions")
        return
    free = free_bytes(found)
    if free < _STOPS_BELOW:
        yield fail(name, f"{gib(free)} free for {path}", f"free {gib(_STOPS_BELOW)} or choose another folder")
    elif free < LITTLE:
        yield warn(name, f"{gib(free)} free for {path}", "free some space; logs and metrics grow")
    else:
        yield ok(name, f"{gib(free)} free for {path}")


def goes_with_the_job(name: str, path: str | Path, setting: str) -> Check | None:
    """What is wrong where `path` is in Ray's copy of a job's working directory, which Ray deletes after the job."""
    if _COPIES_OF_JOBS not in Path(path).absolute().parts:
        return None
    found = f"{path} is in Ray's copy of the job's working directory, which Ray deletes after the job"
    return fail(name, found, f"set {setting} to an absolute path, on storage that every node sees")


def home() -> Iterator[Check]:
    """That there is a home, which a user that an image does not know has not."""
    found = _nearest(Path(os.environ.get("HOME") or "/"))
    if found.is_dir() and os.access(found, os.W_OK | os.X_OK):
        yield ok("home", str(found))
    else:
        fix = "set HOME to a folder of this user"
        yield warn("home", f"{found} can't be written to; vLLM, Triton and Hugging Face keep their caches there", fix)


def shared_memory(object_store: int | None = None, new_ray: bool = True) -> Iterator[Check]:
    """/dev/shm, against what Ray keeps there.

    Args:
        object_store: bytes of `ray_init.object_store_memory`; None for Ray's own choice.
        new_ray: whether a run starts a Ray here; else one has taken its part, and vLLM and NCCL need some more.
    """
    name = "/dev/shm"
    free = free_bytes(Path("/dev/shm"))
    wanted = object_store or min(_OBJECT_STORE_SHARE * _memory(), _OBJECT_STORE_MOST) if new_ray else LITTLE
    if free >= wanted:
        yield ok(name, f"{gib(free)} free")
        return
    slow_is_fine = "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE" in os.environ
    grow = f"give it {gib(wanted)}, such as docker run --shm-size"
    if not new_ray:
        yield warn(name, f"{gib(free)} free; vLLM and NCCL use it beside Ray", grow)
    elif object_store and object_store > _OBJECT_STORE_STRICT and not slow_is_fine:
        yield fail(
            name, f"{gib(free)} free; ray_kwargs.ray_init.object_store_memory={object_store}", f"{grow}, or less"
        )
    else:
        yield warn(name, f"{gib(free)} free; Ray wants {gib(wanted)} and will use its slower temp folder", grow)


def ray_folder(temp_dir: str | None = None) -> Iterator[Check]:
    """Where a new Ray puts its session: room for it, and paths of sockets that the system takes."""
    name = "Ray's temp folder"
    # As Ray 2.60 finds it (_common/utils.py).
    root = Path(temp_dir or Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray")
    fix = "set RAY_TMPDIR to another folder"
    session = f"session_{datetime.now():%Y-%m-%d_%H-%M-%S_%f}_{os.getpid()}"
    socket = root.absolute() / session / "sockets" / "plasma_store"
    length = len(os.fsencode(socket))
    if length > _SOCKET_BYTES:
        yield fail(
            name, f"{root}: its sockets' paths have {length} bytes, more than {_SOCKET_BYTES}", f"{fix}, shorter"
        )
        return
    found = _nearest(root)
    if not found.is_dir() or not os.access(found, os.W_OK | os.X_OK):
        yield fail(name, f"{found} can't be written to", fix)
        return
    status = os.statvfs(found)
    free, size = free_bytes(found), status.f_blocks * status.f_frsize
    if free < _STOPS_BELOW:
        yield fail(name, f"{root}: {gib(free)} free", f"free {gib(_STOPS_BELOW)}, or {fix}")
    elif size and 1 - free / size > _FULL:
        yield warn(name, f"{root}: {1 - free / size:.0%} full; above {_FULL:.0%} Ray spills no objects", fix)
    else:
        yield ok(name, f"{root}: {gib(free)} free, sockets' paths of {length} bytes")


def other_rays(joins: bool) -> Iterator[Check]:
    """That no other Ray cluster than the run's has a node here.

    veRL 0.9.1 gives vLLM weights through sockets in /tmp, named by the job's number in its cluster
    (workers/rollout/vllm_rollout/vllm_rollout.py): two clusters' first jobs have the same.

    Args:
        joins: whether the run joins a cluster; else it starts its own.
    """
    clusters = _clusters_of_nodes_here()
    if len(clusters) <= joins:
        yield ok(_OTHER_RAYS, "none has a node on this machine")
        return
    found = f"{len(clusters)} have nodes on this machine ({', '.join(sorted(clusters))})"
    why = "trainings of two clusters can get each other's weights, through sockets of veRL's in /tmp"
    yield warn(_OTHER_RAYS, f"{found}; {why}", "train in one of them at a time, or give each a /tmp of its own")


def _clusters_of_nodes_here() -> set[str]:
    """Addresses of the clusters that have a node here, in our /tmp; of other users' only what this one may see."""
    found: set[str] = set()
    here = os.stat("/tmp")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if Path(words[0]).name == "raylet" and os.path.samestat(os.stat(process / "root/tmp"), here):
                found.update(word.partition("=")[2] for word in words if word.startswith("--gcs-address="))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def ray_authentication(joins: bool | None) -> Iterator[Check]:
    """That this side and a cluster can agree on Ray's token.

    Args:
        joins: whether a run joins a cluster that is there; None where no run is known.
    """
    name = "Ray's authentication"
    mode = os.environ.get("RAY_AUTH_MODE", "").strip().lower()
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        token = os.environ.get("RAY_AUTH_TOKEN") or file.read_text().strip()
    except OSError:
        token = ""
    if mode == "token" and not token and joins:
        yield fail(
            name,
            f"RAY_AUTH_MODE=token, but there is no token in RAY_AUTH_TOKEN or {file}",
            "copy the cluster's token there, or set RAY_AUTH_MODE=disabled if it has none",
        )
    elif mode not in ("", "disabled", "token"):
        yield warn(name, f"RAY_AUTH_MODE={mode} is none that is known", "set it to disabled or token")
    elif not mode and token and joins is not False:
        # Since Ray 2.52: `ray start --head` then asks for the token, and who does not send it gets 401.
        yield warn(
            name,
            f"RAY_AUTH_MODE is unset and there is a token in {'RAY_AUTH_TOKEN' if not file.is_file() else file}: "
            "Ray turns authentication on, and ray job submit may get 401",
            "set RAY_AUTH_MODE=disabled, or token, alike on every node and where you submit",
        )
    else:
        yield ok(name, f"RAY_AUTH_MODE={mode or 'unset'}, {'a token' if token else 'no token'}")


def weights_in_shared_memory(bucket: int, weights: int) -> Iterator[Check]:
    """/dev/shm, against the bucket that veRL fills there where a device has no IPC of its own.

    veRL 0.9.1 makes a segment of `bucket` bytes (bucketed_weight_transfer.py) and fills it with at most `weights`;
    writing beyond the file system's end kills the process by SIGBUS.
    """
    name = "/dev/shm for weights"
    free = free_bytes(Path("/dev/shm"))
    need = min(bucket, weights)
    fix = "make /dev/shm larger or lower actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes"
    found = f"{gib(free)} free, {gib(need)} needed"
    yield fail(name, found, fix) if free < need else ok(name, found)


def checkpoints(path: str, least: int, likely: int, kept: int = 1) -> Iterator[Check]:
    """Room for one checkpoint: `least` bytes that it surely has on this node, and a `likely` number. And for `kept`."""
    name = "checkpoints"
    if "://" in path:
        yield skip(name, f"{path} is remote")
        return
    found = _nearest(Path(os.path.expanduser(path)))
    if not found.is_dir() or not os.access(found, os.W_OK | os.X_OK):
        yield fail(name, f"{found} can't be written to", "set trainer.default_local_dir to another folder")
        return
    free = free_bytes(found)
    fix = "free some space, set trainer.default_local_dir to another folder or trainer.save_freq=-1"
    if free < least:
        yield fail(name, f"{gib(free)} free for {path}; the weights alone have {gib(least)}", fix)
    elif free < likely:
        yield warn(name, f"{gib(free)} free for {path}; one checkpoint has about {gib(likely)}", fix)
    elif free < kept * likely:
        all_of_them = f"{gib(free)} free for {path}; the run's {kept} checkpoints have about {gib(likely)} each"
        yield warn(
            name, all_of_them, "keep the last ones only, by trainer.max_actor_ckpt_to_keep=2, or free some space"
        )
    else:
        yield ok(name, f"{gib(free)} free for {path}, one checkpoint about {gib(likely)}")


def full(paths: Iterable[str]) -> list[str]:
    """Those of `paths` whose file system has no room, as torch does not say of a checkpoint that it can't write."""
    return [path for path in sorted(paths) if "://" not in path and free_bytes(_nearest(Path(path))) < _STOPS_BELOW]


def free_bytes(path: Path) -> int:
    """Bytes that a process without privileges can still write to the file system of `path`."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def gpu_bytes() -> int:
    """The memory of this machine's first GPU."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def _nearest(path: Path) -> Path:
    """`path`, or the nearest of its parents that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
