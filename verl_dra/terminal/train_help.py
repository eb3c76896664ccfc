"""The help of `verl-dra train`, in the place of Hydra's, which is the whole configuration."""

from __future__ import annotations

from collections.abc import Sequence

TEXT = """\
usage: verl-dra train [Hydra options] KEY=VALUE ...

Train a model by veRL with diversity-aware rewards (DRA-GRPO).

examples:
  verl-dra train data.train_files=train.parquet data.val_files=test.parquet \\
    actor_rollout_ref.model.path=MODEL actor_rollout_ref.rollout.n=8 trainer.n_gpus_per_node=8
  verl-dra train --config-dir FOLDER --config-name NAME dra.smi=log_det     a config of your own, NAME.yaml in FOLDER
  verl-dra train --multirun dra.smi=graph_cut,log_det ...                   one training after the other

keys:
  dra.*         of this package; README lists them. dra.enabled=False is veRL's own run, for comparison
  all others    veRL's, unchanged. --cfg job prints every key with its value, and trains nothing
  +platform=cpu trains on this machine's CPU, for tests and demos

options of Hydra: --config-dir, --config-name, --multirun, --cfg job; --hydra-help lists all.
verl-dra doctor with the same arguments says what would stop the run.
"""


def is_asked_for(arguments: Sequence[str]) -> bool:
    """Whether the arguments of `train` ask for help."""
    return bool({"-h", "--help"} & set(arguments))
