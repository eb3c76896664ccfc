"""The command `verl-dra doctor`: its options, which checks it makes, and what it says."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from verl_dra import __version__
from verl_dra.doctor import machine, versions
from verl_dra.doctor.check import Check, count, fail, guarded, ok, report, skip
from verl_dra.missing import advice

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from verl_dra.config import DRAConfig
_GIVE = "give the Hydra arguments of the run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options of `verl-dra doctor`."""
    parser.epilog = (
        "With the arguments of `verl-dra train` it checks that run; with none, this machine. The exit status is 1 "
        "where something would stop a run, else 0."
    )
    parser.add_argument(
        "--address", help="a Ray cluster to look at (default: ray_kwargs.ray_init.address, or RAY_ADDRESS)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    for name, short, text in (
        ("--config-dir", "-cd", "Hydra's, as for train"),
        ("--config-path", "-cp", "Hydra's, as for train"),
        ("--config-name", "-cn", "Hydra's, as for train"),
    ):
        parser.add_argument(name, short, help=text)
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, as for train")


def run(options: argparse.Namespace) -> int:
    """Make the checks and show them; 1 where one failed."""
    # What libraries print must not stand in the JSON.
    with redirect_stdout(sys.stderr):
        checks = examine(hydra_arguments(options), options.address)
    if options.json:
        lines = [{"check": line.pop("name"), **line} for line in map(asdict, checks)]
        found = {"verl_dra": __version__, "checks": lines, "counts": count(checks)}
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        sys.stdout.write(report(checks))
    return int(any(check.state == "fail" for check in checks))


def hydra_arguments(options: argparse.Namespace) -> list[str]:
    """What `verl-dra train` would be given."""
    flags = [("--config-dir", options.config_dir), ("--config-path", options.config_path)]
    flags.append(("--config-name", options.config_name))
    overrides: list[str] = options.overrides
    return [word for flag, value in flags if value is not None for word in (flag, value)] + overrides


def examine(arguments: Sequence[str], address: str | None = None) -> list[Check]:
    """All checks: of this machine alone without `arguments`, else of the run that they describe."""
    return guarded("doctor", _run, arguments, address) if arguments else guarded("doctor", _machine, address)


def _machine(address: str | None) -> Iterator[Check]:
    address = address or os.environ.get("RAY_ADDRESS")
    address = None if address == "local" else address
    run = ("configuration", "model", "tokenizer", "data", "GPUs and CPUs", "outputs", "checkpoints", "resuming")
    yield from (
        *_software(versions.TESTED),
        *guarded("encoder", _default_encoder),
        *guarded("/dev/shm", machine.shared_memory, None, address is None),
        *([] if address else guarded("Ray's temp folder", machine.ray_folder)),
        *guarded("Ray's authentication", machine.ray_authentication, True if address else None),
        *_cluster(None, address, []),
        *(skip(name, f"not looked at; {_GIVE}") for name in run),
    )


def _run(arguments: Sequence[str], address: str | None) -> Iterator[Check]:
    if wrong := list(_words(arguments)):
        yield from (*wrong, skip("all else", "needs the configuration"))
        return
    composed: list[tuple[DictConfig, Path]] = []
    refused = guarded("configuration", _compose, arguments, composed)
    if not composed:
        yield from (*refused, *_software(versions.TESTED), skip("all else", "needs the configuration"))
        return
    # Hydra and Ray are there, or nothing would have been composed.
    from verl_dra.doctor import cluster, data_files, fast, group_filter, model, partition, reward_function
    from verl_dra.doctor.run_config import cluster_address, files, is_remote, select

    config, output = composed[0]
    prepared = guarded("configuration", _prepare, config)
    good = all(check.state != "fail" for check in prepared)
    address = address or cluster_address(config)
    elsewhere = address is not None

    paths = [select(config, "actor_rollout_ref.model.path"), *files(select(config, "data.train_files"))]
    paths += files(select(config, "data.val_files"))
    if select(config, "dra.enabled"):
        paths.append(select(config, "dra.embedding.model"))
    local = [path for path in map(str, paths) if not is_remote(path) and Path(path).is_absolute()]
    yield from (
        *prepared,
        *_software(fast.needed_distributions(config)),
        *guarded("model", model.model, config, elsewhere),
        *guarded("tokenizer", model.tokenizer, config, elsewhere),
        *guarded("data", data_files.data_files, config, elsewhere),
        *guarded("reward function", reward_function.reward_function, config, elsewhere),
        *guarded("reward manager", reward_function.reward_manager, config),
        *guarded("group filter", group_filter.group_filter, config),
        *(
            guarded("encoder", _encoder, config)
            if good
            else [skip("encoder", "needs a configuration that is not refused")]
        ),
        *(guarded("partition", partition.partition_looks, config) if good else []),
        *fast.machine_checks(config, output, address),
        *(guarded("ray_kwargs.ray_init", cluster.joining, config, address) if address else []),
        *_cluster(config, address, local),
    )


def _software(needed: Iterable[str]) -> list[Check]:
    return [
        *guarded("versions", versions.versions, needed),
        *guarded("veRL plugin", versions.plugin),
        *guarded("transfer_queue", versions.transfer_queue),
    ]


def _words(arguments: Sequence[str]) -> Iterator[Check]:
    """What is misspelt of `dra.*`; nothing of veRL is imported to see it."""
    try:
        from verl_dra.config.command_line import check_words
    except ImportError:  # which composing says
        return
    try:
        check_words(arguments)
    except ValueError as error:
        yield fail("configuration", str(error), "train would end with the same message")


def _compose(arguments: Sequence[str], composed: list[tuple[DictConfig, Path]]) -> Iterator[Check]:
    """Adds what Hydra composes to `composed`, or says why there is nothing."""
    try:
        from verl_dra.config.compose import composed as compose
    except ImportError as error:
        yield fail("configuration", f"can't be composed: {error}", advice(error))
        return
    try:
        composed.append(compose(arguments))
    except ValueError as error:
        yield fail("configuration", str(error), "train would end with the same message")


def _prepare(config: DictConfig) -> Iterator[Check]:
    """What `verl-dra train` checks before anything else, this package's part and veRL's."""
    from verl_dra.config import ConfigError
    from verl_dra.config.compose import check

    try:
        dra = check(config)
    except ConfigError as error:
        yield fail("configuration", str(error), "")
    else:
        yield ok("configuration", _in_words(config, dra))


def _in_words(config: DictConfig, dra: DRAConfig) -> str:
    """What a run that nothing refuses does."""
    from verl_dra.config.schema import TEXTS
    from verl_dra.config.streaming import why_not_streamed

    if not dra.enabled:
        return f"trains {dra.base_estimator}"
    late = why_not_streamed(config)
    return f"trains DRA over {dra.base_estimator}, by the diversity of {TEXTS[dra.text]}" + (
        f"; it is embedded after the generation and not during it ({late})" if late else ""
    )


def _default_encoder() -> Iterator[Check]:
    from verl_dra.doctor.encoder import encoder_embeds
    from verl_dra.embedding import EmbeddingConfig

    yield from encoder_embeds(EmbeddingConfig(), on_cpu=False)


def _encoder(config: DictConfig) -> Iterator[Check]:
    from verl_dra.doctor.encoder import Measured, embedding_config, encoder_embeds
    from verl_dra.doctor.fast import model_size
    from verl_dra.doctor.scorers import fit_beside_vllm, keep_up

    if not config.dra.enabled:
        yield skip("encoder", "dra.enabled=False needs none")
        return
    measured: list[Measured] = []
    yield from encoder_embeds(embedding_config(config), config.dra.scorer.placement == "cpu", measured)
    for of_encoder in measured:
        on_gpu, parameters = of_encoder.memory is not None, model_size(config)[1]
        yield from keep_up(config, of_encoder.tokens_per_s, on_gpu, parameters)
        yield from fit_beside_vllm(config, of_encoder.memory, machine.gpu_bytes() if on_gpu else 0, parameters)


def _cluster(config: DictConfig | None, address: str | None, paths: Sequence[str]) -> list[Check]:
    if address is not None:
        return guarded("Ray cluster", _at, config, address, paths)
    none = skip("Ray cluster", "a run without RAY_ADDRESS or --address starts its own on this node")
    return [none] if config is None else [none, *guarded("GPUs and CPUs", _own_ray, config)]


def _at(config: DictConfig | None, address: str, paths: Sequence[str]) -> Iterator[Check]:
    from verl_dra.doctor.cluster import cluster

    yield from cluster(config, address, paths)


def _own_ray(config: DictConfig) -> Iterator[Check]:
    from verl_dra.doctor.cluster import own_ray

    yield from own_ray(config)
