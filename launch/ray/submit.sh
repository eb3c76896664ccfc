#!/usr/bin/env bash
# Submit `verl-dra train` to a running Ray cluster, by submission.py; README.md beside this has examples.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: submit.sh [options] [--] [Hydra options and overrides of verl-dra train]

  --address URL         the cluster's job server, such as http://head:8265 (default: RAY_API_SERVER_ADDRESS)
  --working-dir DIR     code that the job takes with it (default: the current folder)
  --runtime-env FILE    YAML with what it leaves out (default: runtime_env.yaml beside this script)
  --submission-id ID    the job's name; must be new (default: made from time and chance)
  --token-path FILE     the cluster's token (default: RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN)
  --no-doctor           train at once, without `verl-dra doctor` on the cluster first; for --multirun
  --follow              show the log until the job ends, and exit as it does (default)
  --no-wait             return when the job is submitted
TEXT
}

die() {
  echo "submit.sh: $*" >&2
  exit 2
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
address=${RAY_API_SERVER_ADDRESS:-}
working_dir=$PWD
runtime_env=$here/runtime_env.yaml
submission_id=
doctor=yes
follow=yes
while (($#)); do
  case $1 in
    --address | --working-dir | --runtime-env | --submission-id | --token-path)
      (($# > 1)) || die "$1 needs a value"
      case $1 in
        --address) address=$2 ;;
        --working-dir) working_dir=$2 ;;
        --runtime-env) runtime_env=$2 ;;
        --submission-id) submission_id=$2 ;;
        --token-path)
          export RAY_AUTH_TOKEN_PATH=$2
          unset RAY_AUTH_TOKEN # which Ray would take before the file
          ;;
      esac
      shift 2
      ;;
    --no-doctor) doctor= && shift ;;
    --follow) follow=yes && shift ;;
    --no-wait) follow= && shift ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    *) break ;;
  esac
done

# Without an address Ray would look for a cluster on this machine, or start one.
[[ -n $address ]] || die "give --address URL or set RAY_API_SERVER_ADDRESS; there is no default"
[[ $address == http://* || $address == https://* ]] || die "--address must start with http:// or https://, not $address"
[[ -d $working_dir ]] || die "--working-dir: there is no folder $working_dir"
[[ -f $runtime_env ]] || die "--runtime-env: there is no file $runtime_env"
command -v ray >/dev/null || die "ray is not on PATH; pip install 'ray[default]', of the cluster's version"

# Since Ray 2.52 a token that an earlier local Ray left behind turns authentication on where this is unset.
if [[ -n ${RAY_AUTH_TOKEN_PATH:-} ]]; then
  [[ -r $RAY_AUTH_TOKEN_PATH ]] || die "can't read the token file $RAY_AUTH_TOKEN_PATH"
  export RAY_AUTH_MODE=token
elif [[ -n ${RAY_AUTH_TOKEN:-} ]]; then
  export RAY_AUTH_MODE=token
else
  export RAY_AUTH_MODE=${RAY_AUTH_MODE:-disabled}
fi

# The interpreter of `ray`, which may be a shim or a wrapper: the one that its first line names, its neighbours, or
# what PATH has.
python=
ray=$(readlink -f "$(command -v ray)")
first=$(sed -n '1s/^#! *\(.*python[0-9.]*\)$/\1/p' "$ray")
for candidate in "$first" "${ray%/*}/python3" "${ray%/*}/python" python3 python; do
  # Its version too, as a folder of this name can be imported as well.
  "$candidate" -c 'import ray; ray.__version__' 2>/dev/null || continue
  python=$candidate
  break
done
[[ -n $python ]] || die "no Python that has ray: neither beside $ray nor python3 or python on PATH"

submission_id=${submission_id:-verl-dra-$(date -u +%Y%m%d-%H%M%S)-$(od -An -N4 -tx4 /dev/urandom | tr -d ' ')}
platform=()
if [[ -n ${VERL_PLATFORM:-} ]]; then
  platform=(env "VERL_PLATFORM=$VERL_PLATFORM")
fi
# One job of two commands, so that they see the same node and the same code.
program='exec verl-dra train "$@"'
if [[ -n $doctor ]]; then
  program='verl-dra doctor "$@" && exec verl-dra train "$@"'
fi

exec "$python" "$here/submission.py" --address="$address" --working-dir="$working_dir" --runtime-env="$runtime_env" \
  --submission-id="$submission_id" ${follow:+--follow} \
  -- ${platform[@]+"${platform[@]}"} bash -c "$program" verl-dra "$@"
