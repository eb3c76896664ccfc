#!/usr/bin/env bash
# DRA-GRPO, as the paper's recipes/dra_grpo.yaml has it.
exec "$(dirname "${BASH_SOURCE[0]}")/train.sh" dra_grpo "$@"
