#!/usr/bin/env bash
# Dr.GRPO: dra_dr_grpo without DRA, and nothing else changed.
exec "$(dirname "${BASH_SOURCE[0]}")/train.sh" dr_grpo "$@"
