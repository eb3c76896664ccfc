#!/usr/bin/env bash
# Submit `verl-dra train` to a running Ray cluster, by `ray job submit`; README.md beside this has examples.
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
  cli=$("$candidate" -c 'import importlib.util as u; print(u.find_spec("ray").submodule_search_locations[0])' \
    2>/dev/null) || continue
  python=$candidate
  break
done
[[ -n $python ]] || die "no Python that has ray: neither beside $ray nor python3 or python on PATH"
# Older ones quote for Windows, so that $, *, " and ; of an override would reach the cluster's shell
# (ray-project/ray pull request 63797).
grep -q 'shlex\.join' "$cli/dashboard/modules/job/cli.py" ||
  die "this Ray does not quote a job's arguments for a shell; install a newer one (2.60 does) where you submit"

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

ray job submit --address "$address" --submission-id "$submission_id" --no-wait \
  --working-dir "$working_dir" --runtime-env "$runtime_env" \
  -- ${platform[@]+"${platform[@]}"} bash -c "$program" verl-dra "$@"
echo "submit.sh: submitted $submission_id"
[[ -n $follow ]] || exit 0

trap 'echo "submit.sh: $submission_id goes on; stop it by: ray job stop --address $address $submission_id" >&2; exit 130' INT TERM
# The client's own exit status is 0 for a job that was stopped, and 1 whatever a failed one ended with.
how_it_is() {
  "$python" - "$address" "$submission_id" <<'PYTHON'
import sys

from ray.job_submission import JobStatus, JobSubmissionClient

job = JobSubmissionClient(sys.argv[1]).get_job_info(sys.argv[2])
if not job.status.is_terminal():
    print("goes on")
else:
    print(job.status, 0 if job.status == JobStatus.SUCCEEDED else job.driver_exit_code or 1)
PYTHON
}
unanswered=0
while true; do
  ray job logs --address "$address" --follow "$submission_id" || true
  if read -r state status < <(how_it_is); then
    unanswered=0
    [[ $state == goes ]] || break
    echo "submit.sh: the log broke off, and $submission_id goes on; here it is again" >&2
  else
    unanswered=$((unanswered + 1))
    if ((unanswered == 20)); then
      echo "submit.sh: $address does not answer any more; $submission_id may go on" >&2
      exit 1
    fi
  fi
  sleep 3
done
echo "submit.sh: $submission_id $state, exit status $status"
exit "$status"
