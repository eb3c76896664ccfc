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
python - "$second" >stopped.json <<'PYTHON'
import json
import os
import signal
import sys
from dataclasses import asdict

import ray

from verl_dra.doctor.cluster import cluster

address = "127.0.0.1:6379"
ray.init(address, log_to_driver=False)
# Each node has started a worker then, and the other one answers soon.
list(cluster(None, address, deadline_s=300))
os.kill(int(sys.argv[1]), signal.SIGSTOP)
print(json.dumps([asdict(check) for check in cluster(None, address, deadline_s=15)]))
PYTHON
echo "STOPPED $?"
