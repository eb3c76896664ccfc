#!/usr/bin/env bash
# Two Ray nodes in one set of namespaces: $1 is the interpreter of the second, in whose environment a package may be
# missing. Then what `verl-dra doctor` says of them, and what it says when the second stands still.
set -euo pipefail
start() { "$@" --num-cpus=8 --num-gpus=1 --disable-usage-stats >>nodes.log 2>&1 || { cat nodes.log; exit 1; }; }
start ray start --head --port=6379 --include-dashboard=false
start env -u PYTHONPATH "$1" -m ray.scripts.scripts start --address=127.0.0.1:6379
second=$(pgrep -n raylet)
set +e
verl-dra doctor --address 127.0.0.1:6379 --json >both.json
echo "BOTH $?"
kill -STOP "$second"
python - >stopped.json <<'PYTHON'
import json
from dataclasses import asdict

from verl_dra.doctor.cluster import cluster

print(json.dumps([asdict(check) for check in cluster(None, "127.0.0.1:6379", deadline_s=15)]))
PYTHON
echo "STOPPED $?"
