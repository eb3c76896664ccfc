#!/usr/bin/env bash
# DRA-Dr.GRPO, as the paper's recipes/dra_dr_grpo.yaml has it.
exec "$(dirname "${BASH_SOURCE[0]}")/train.sh" dra_dr_grpo "$@"
