#!/usr/bin/env bash
# train.sh RUN [Hydra options] [Hydra overrides]: RUN is dra_grpo, dra_dr_grpo, grpo or dr_grpo.
#   DATA_DIR  the folder that `verl-dra prepare-data open_rs` made (needed)
#   HARDWARE  four_gpus (default), one_gpu or two_nodes_7b
#   MODEL     a folder or hub name in the place of the hardware's model
#   SEED      in the place of the paper's
set -euo pipefail
run=${1:?name a run: dra_grpo, dra_dr_grpo, grpo or dr_grpo}
shift
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec verl-dra train --config-dir "$here" --config-name "$run" \
  "$@" \
  "data_dir=${DATA_DIR:?set DATA_DIR to the folder that verl-dra prepare-data open_rs made}" \
  ${HARDWARE:+"hardware=$HARDWARE"} \
  ${MODEL:+"actor_rollout_ref.model.path=$MODEL"} \
  ${SEED:+"seed=$SEED"}
