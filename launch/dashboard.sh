#!/usr/bin/env bash
# Serves TensorBoard on this machine for one or more runs:
#
#   launch/dashboard.sh runs/digits [runs/mnist ...] [--port N]
#
# Only programs on this machine can connect (127.0.0.1). The default port is the first free one
# from 6006; TensorBoard prints the address. Ctrl-C ends it.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

fail() {
  printf 'dashboard.sh: %s\n' "$1" >&2
  exit 2
}

usage="usage: launch/dashboard.sh RUN... [--port N]; a RUN is the folder of a run, such as runs/digits"
runs=()
port=()
while (($#)); do
  case "$1" in
    -h | --help)
      printf '%s\n' "$usage"
      exit 0
      ;;
    --port | --port=*)
      if [[ "$1" == *=* ]]; then
        number="${1#*=}"
      else
        (($# > 1)) || fail "--port needs a number; $usage"
        shift
        number="$1"
      fi
      if [[ ! "$number" =~ ^[1-9][0-9]{0,4}$ ]] || ((number > 65535)); then
        fail "--port $number: a port is a whole number from 1 to 65535"
      fi
      port=(--port "$number")
      ;;
    -*) fail "unknown option $1; $usage" ;;
    *) runs+=("${1%/}") ;;
  esac
  shift
done
((${#runs[@]})) || fail "no run given; $usage"

for run in "${runs[@]}"; do
  [[ "$run" == *://* || -d "$run" ]] ||
    fail "no run directory $run; list yours with: ls runs"
done

tensorboard="$root/.venv/bin/tensorboard"
if [[ ! -x "$tensorboard" ]]; then
  tensorboard="$(command -v tensorboard)" ||
    fail "no tensorboard in $root/.venv or on the PATH; launch/local.sh digits installs it"
fi

if ((${#runs[@]} == 1)); then
  source=(--logdir "${runs[0]}")
else
  # name:path,name:path; the names are the folders', or the whole paths where two are alike.
  alike="$(printf '%s\n' "${runs[@]##*/}" | sort | uniq -d)"
  spec=""
  for run in "${runs[@]}"; do
    [[ "$run" != *[,:]* ]] || fail "$run: a path with a comma or colon can only be shown alone"
    name="${run##*/}"
    [[ -z "$alike" ]] || name="$run"
    spec+="${spec:+,}$name:$run"
  done
  source=(--logdir_spec "$spec")
fi
exec "$tensorboard" --host 127.0.0.1 "${source[@]}" ${port[@]+"${port[@]}"}
