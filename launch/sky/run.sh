#!/usr/bin/env bash
# One node of a SkyPilot task: the first starts Ray and runs `verl-dra train` with this script's arguments, the others
# join. Ends with the trainer's status on the first node; with 0 on the others once the first is gone, which has the say.
#   JOIN_TIMEOUT_S    how long the nodes wait for each other (600)
# `ray stop` is not used: it would end SkyPilot's own Ray, and with it the node.
set -euo pipefail

head=$(head -n 1 <<<"$SKYPILOT_NODE_IPS")
port=${RAY_PORT:-6379} # SkyPilot's own Ray has 6380
deadline=$((SECONDS + ${JOIN_TIMEOUT_S:-600}))
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
: "${RAY_AUTH_TOKEN:?export it, and give sky launch --secret RAY_AUTH_TOKEN}"

end_ray() {
  kill "$ray" 2>/dev/null || true
  wait "$ray" || true
}

head_answers() {
  timeout 5 bash -c "exec 3<>/dev/tcp/$head/$port" 2>/dev/null
}

running() {
  kill -0 "$ray" 2>/dev/null
}

give_up() {
  echo "run.sh: $1" >&2
  exit 1
}

if [[ $SKYPILOT_NODE_RANK == 0 ]]; then
  ray start --head --block --node-ip-address="$head" --port="$port" --include-dashboard=false &
  ray=$!
  trap end_ray EXIT
  trap 'exit 143' TERM
  until head_answers; do
    running || give_up "Ray ended before it served"
    ((SECONDS < deadline)) || give_up "Ray does not serve on $head:$port"
    sleep 1
  done
  python3 - "$head:$port" "$SKYPILOT_NUM_NODES" $((deadline - SECONDS)) <<'PYTHON' || give_up "not all nodes joined"
import sys
import time

import ray

address, nodes, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
ray.init(address=address, log_to_driver=False, logging_level="error")
deadline = time.monotonic() + seconds
while (alive := sum(node["Alive"] for node in ray.nodes())) < nodes:
    if time.monotonic() > deadline:
        sys.exit(f"{alive} of {nodes} nodes joined")
    time.sleep(1)
PYTHON
  verl-dra train "$@" \
    trainer.nnodes="$SKYPILOT_NUM_NODES" trainer.n_gpus_per_node="$SKYPILOT_NUM_GPUS_PER_NODE" \
    +ray_kwargs.ray_init.address="$head:$port" ray_kwargs.ray_init.num_cpus=null &
  train=$!
  trap 'kill "$train" 2>/dev/null || true; wait "$train" || true; exit 143' TERM
  status=0
  wait "$train" || status=$?
  exit "$status"
fi

until head_answers; do
  ((SECONDS < deadline)) || give_up "no Ray at $head:$port"
  sleep 1
done
ray start --address="$head:$port" --block &
ray=$!
trap end_ray EXIT
trap 'exit 143' TERM
silent=0
while ((silent < 3)); do
  sleep 2
  if head_answers; then
    silent=0
    running || give_up "this node's Ray ended before the head's"
  else
    silent=$((silent + 1))
  fi
done
