#!/usr/bin/env bash
# Sourced by test_ray_job.py inside namespaces: a Ray head with a job server, ready when this returns.
set -euo pipefail
PATH="${HEAD_PATH:-$PATH}" env -u VERL_PLATFORM RAY_AUTH_MODE="$HEAD_AUTH_MODE" \
  ray start --head --port=6379 --num-cpus=32 --num-gpus=1 --dashboard-host=127.0.0.1 --dashboard-port=8265 \
  --disable-usage-stats >head.log 2>&1 || { cat head.log; exit 1; }
curl --silent --output /dev/null --retry 120 --retry-delay 1 --retry-all-errors http://127.0.0.1:8265/api/version
