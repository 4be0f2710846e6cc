#!/usr/bin/env bash
# Commands of launch/tpu_pod.sh on each worker of a TPU, run in the copy ~/functa.
#
#   launch/tpu_worker.sh prepare                            creates the environment
#   launch/tpu_worker.sh run NAME[:OPTIONS] ARGUMENT...     runs functa.main with its output in ~/functa.log
#   launch/tpu_worker.sh follow                             prints ~/functa.log until the run ends
#   launch/tpu_worker.sh stop                               stops the current run, which saves its state
set -euo pipefail

root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
log="$HOME/functa.log"
state="$HOME/functa.state" # run: the process of this script; main: that of functa.main
save_seconds=120

# Prints the process id of functa.main if it runs. After a reboot the id may be another program's.
running() {
  local pid
  pid="$(cat "$state/main" 2>/dev/null)" || return 0
  if tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q ' functa\.main '; then
    printf '%s\n' "$pid"
  fi
}

stop() {
  local pid turns=$((5 * save_seconds))
  pid="$(running)"
  [ -n "$pid" ] || return 0
  kill -TERM "$pid" 2>/dev/null || return 0
  while [ "$(running)" = "$pid" ]; do
    sleep 0.2
    if [ $((turns -= 1)) -le 0 ]; then kill -KILL "$pid" 2>/dev/null || true; fi
  done
}

prepare() { # no run is under way
  rm -rf "$state"
  mkdir "$state"
  if [ -e "$log" ]; then mv "$log" "$log.previous"; fi
  # Ubuntu 22.04, the system of most TPU VMs, has Python 3.10 only.
  if ! command -v python3.12 >/dev/null && ! command -v python3.11 >/dev/null &&
    ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    sudo add-apt-repository -y ppa:deadsnakes/ppa >&2
    sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 install -y \
      python3.12 python3.12-venv >&2
  fi
  "$root/launch/environment.sh" tpu
}

run() { # NAME[:OPTIONS] ARGUMENT...
  local config="$root/configs/${1%%:*}.py${1#"${1%%:*}"}" status=0
  shift
  export PYTHONUNBUFFERED=1
  export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}" # XLA's own log: errors only
  export JAX_PLATFORMS="${JAX_PLATFORMS:-tpu,cpu}" # without it, JAX would fall back to the CPU
  export FUNCTA_STOPPED_STATUS=75 # exit status of a worker that was stopped before the run was complete
  echo "$$" >"$state/run"
  : >"$log" # `follow` waits for this file
  "$root/.venv/bin/python" -P -m functa.main "--config=$config" "$@" >>"$log" 2>&1 </dev/null &
  echo "$!" >"$state/main"
  wait "$!" || status=$?
  # tpu_pod.sh reads this line, since gcloud does not report which worker failed.
  printf 'functa: worker %s ended with status %s\n' "$(hostname)" "$status"
  exit "$status"
}

follow() {
  local turns=600
  until [ -e "$log" ]; do
    sleep 0.2
    if [ $((turns -= 1)) -le 0 ]; then exit 0; fi
  done
  exec tail -n +1 -f --pid="$(cat "$state/run")" "$log"
}

case "${1:-}" in
  prepare | run | follow | stop) "$@" ;;
  *)
    printf 'launch/tpu_worker.sh: the command must be prepare, run, follow or stop\n' >&2
    exit 2
    ;;
esac
