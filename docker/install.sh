#!/usr/bin/env bash
# install.sh SOURCE [VERSION]: installs the package from the folder SOURCE over what this environment carries.
# Fails if that moves, or if the package is of another version.
set -euo pipefail
source=${1:?name the folder of pyproject.toml}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
notes=$(mktemp -d)
trap 'rm -rf "$notes"' EXIT

python3 "$here/carried.py" record "$notes"
# veRL's image is of Ubuntu 24.04, whose system Python refuses pip otherwise.
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir --constraint "$notes/constraints.txt" \
  --requirement "$here/requirements.txt" "${source}[train,report,openai,math]"
python3 "$here/carried.py" check "$notes"
found=$(python3 -c 'from importlib.metadata import version; print(version("verl_dra"))')
if [[ $found != "${2:-$found}" ]]; then
  echo "install: the package is of version $found, not $2" >&2
  exit 1
fi
