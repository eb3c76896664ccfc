#!/usr/bin/env bash
# entrypoint.sh [COMMAND [ARGUMENTS]]: every command replaces this shell, so that signals reach it.
#   ray-head [ray's options]                   this node as the head of a Ray cluster
#   ray-worker HEAD[:PORT] [ray's options]     this node joins; waits RAY_JOIN_TIMEOUT_S (300) seconds for the head
#   train, doctor and verl-dra's other commands
#   any other program, as it is
set -euo pipefail

die() {
  echo "entrypoint: $1" >&2
  exit 2
}

# Without it, whoever reaches a node's ports runs what they like there.
with_token() {
  export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
  [[ $RAY_AUTH_MODE != token || -n ${RAY_AUTH_TOKEN:-} || -r ${RAY_AUTH_TOKEN_PATH:-} ]] ||
    die "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that user $(id -u) can read; the same on all nodes"
}

wait_for() {
  local host=$1 port=$2 seconds=$3
  local deadline=$((SECONDS + seconds))
  until timeout 5 bash -c "exec 3<>/dev/tcp/$host/$port" 2>/dev/null; do
    ((SECONDS < deadline)) || die "no Ray head at $host:$port within $seconds s"
    sleep 1
  done
}

# A number that the image has no user for (docker run --user) has neither a name nor a home: torch, vLLM, Triton and Ray
# name their caches by the one and put them into the other.
as_somebody() {
  local home
  if ! getent passwd "$(id -u)" >/dev/null; then
    export USER="${USER:-uid_$(id -u)}"
    export LOGNAME="${LOGNAME:-$USER}"
  fi
  if [[ ! -w ${HOME:-/nowhere} ]]; then
    if home=$(mktemp -d -t home.XXXXXX); then export HOME=$home; fi
  fi
}

as_somebody
[[ $# -gt 0 ]] || set -- --help
case $1 in
  ray-head)
    with_token
    exec ray start --head --block --port="${RAY_PORT:-6379}" "${@:2}"
    ;;
  ray-worker)
    with_token
    head=${2:-}
    [[ -n $head && $head != -* ]] || die "ray-worker needs the head's address: ray-worker HEAD[:PORT]"
    port=${RAY_PORT:-6379}
    [[ $head != *:* ]] || port=${head##*:}
    head=${head%:*}
    wait_for "$head" "$port" "${RAY_JOIN_TIMEOUT_S:-300}"
    exec ray start --address="$head:$port" --block "${@:3}"
    ;;
  train | doctor | -*) exec verl-dra "$@" ;;
  *)
    if [[ -n $(type -P "$1") ]]; then
      exec "$@"
    fi
    exec verl-dra "$@"
    ;;
esac
