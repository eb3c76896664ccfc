#!/usr/bin/env bash
# GRPO: dra_grpo without DRA, and nothing else changed.
exec "$(dirname "${BASH_SOURCE[0]}")/train.sh" grpo "$@"
