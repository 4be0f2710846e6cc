#!/usr/bin/env bash
# Runs an experiment on this machine: creates .venv if needed, then starts functa.main.
# Sets up environment and processes only; configs/ defines the computation.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=arguments.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/arguments.sh"

help() {
  cat <<END
usage: launch/local.sh NAME[:OPTIONS] [--processes=N] [--devices=M] [--restart=K] [--workdir=DIR]
                       [--env=KEY=VALUE ...] [--config.KEY=VALUE ...]

Runs all stages of configs/NAME.py and writes all results to DIR. The same command resumes an
interrupted run, and returns at once if the run is complete.

  OPTIONS             words joined by commas: a latent shape (8x8x16), an interpolation (nearest,
                      bilinear), a preset (tiny, two_core, one_gpu); the config's docstring lists them
  --processes=N       starts N processes that work together as on a cluster. They divide the cores; with
                      FUNCTA_EXTRA=cuda each uses one GPU. Each process writes DIR.logs/process-K.log,
                      process 0 also to the terminal. If one fails, all end, with its exit status
  --devices=M         M CPU devices in total, a multiple of N; default: N. For a given M, results are
                      bit-identical for every N
  --restart=K         restarts up to K times after a failure, except for errors of the command or config
  --workdir=DIR       default: runs/ and the experiment's name, in the current directory
  --env=KEY=VALUE     sets an environment variable of all processes, such as XLA_FLAGS
  --config.KEY=VALUE  sets a value of the config, such as --config.field.width=128

  launch/local.sh digits
  launch/local.sh cifar10_spatial:8x8x16,nearest,two_core --workdir=runs/try --config.seed=1
  launch/local.sh digits --processes=2 --restart=3

environment variables
  FUNCTA_PYTHON       the Python that creates .venv; default: python3.12, python3.11 or python3
  FUNCTA_EXTRA        cuda (cuda12, cuda13) or tpu: installs JAX for this accelerator, and requires it

configs
$(configs)
END
}

read_experiment "$@"
shift
processes=1
devices=
restart=0
workdir="$local_workdir"
passed=()
while [ $# -gt 0 ]; do
  argument="$1"
  shift
  case "$argument" in
    --processes | --devices | --restart)
      [ $# -gt 0 ] || refuse "$argument needs a number"
      argument="$argument=$1"
      shift
      ;;
  esac
  case "$argument" in
    --processes=*) processes="${argument#*=}" ;;
    --devices=?*) devices="${argument#*=}" ;;
    --restart=*) restart="${argument#*=}" ;;
    --workdir=?*) workdir="${argument#*=}" && passed+=("$argument") ;;
    --env=*) add_variable "$argument" ;;
    --config.?*=*) passed+=("$argument") ;;
    *)
      refuse "unknown argument '$argument'; known are --processes=N, --devices=M, --restart=K, --workdir=DIR, \
--env=KEY=VALUE and --config.KEY=VALUE"
      ;;
  esac
done
[[ "$processes" =~ ^[1-9][0-9]{0,3}$ ]] || refuse "--processes=$processes: want a number from 1"
[[ "${devices:-$processes}" =~ ^[1-9][0-9]{0,3}$ ]] && [ $((${devices:-$processes} % processes)) = 0 ] ||
  refuse "--devices=$devices: want a multiple of the $processes processes"
[[ "$restart" =~ ^(0|[1-9][0-9]{0,5})$ ]] || refuse "--restart=$restart: want a number from 0"

"$root/launch/environment.sh" "${FUNCTA_EXTRA:-}"

# -P keeps a folder named functa or configs in the current directory from being imported instead.
export PYTHONUNBUFFERED=1 ${variables[@]+"${variables[@]}"}
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}" # XLA's own log: errors only
case "${FUNCTA_EXTRA:-}" in # without JAX_PLATFORMS, JAX would fall back to the CPU
  cuda*) export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}" ;;
  tpu) export JAX_PLATFORMS="${JAX_PLATFORMS:-tpu,cpu}" ;;
esac
python="$root/.venv/bin/python"
program=("$python" -P -m functa.main "--config=$root/configs/$name.py$options" ${passed[@]+"${passed[@]}"})

# Prints a free port, then the cores of each process, one line each.
divide() {
  "$python" -c '
import os, socket, sys
count = int(sys.argv[1])
with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    print(listener.getsockname()[1])
cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
share = len(cores) // count
for k in range(count):
    print(",".join(map(str, cores[k * share : (k + 1) * share])) or "all")
' "$processes"
}

# XLA divides matrix products by its number of threads, NPROC, which must not depend on the number of
# processes. It is twice the number of devices, since one thread per device may wait for other devices.
if [ -n "$devices" ]; then
  export JAX_NUM_CPU_DEVICES="$((devices / processes))" NPROC="$((2 * devices))"
fi

if [ "$processes$restart" = 10 ]; then
  exec "${program[@]}"
fi

logs="${workdir%/}.logs"
case "$workdir" in *://*) logs="runs/$(basename "$workdir").logs" ;; esac

start() { # INDEX PORT CORES
  local command=("${program[@]}")
  [ "$3" = all ] || ! command -v taskset >/dev/null || command=(taskset -c "$3" "${command[@]}")
  if [ "$processes" -gt 1 ]; then
    export JAX_COORDINATOR_ADDRESS="127.0.0.1:$2" JAX_NUM_PROCESSES="$processes" JAX_PROCESS_ID="$1"
    [[ "${FUNCTA_EXTRA:-}" != cuda* ]] || export CUDA_VISIBLE_DEVICES="$1"
  fi
  exec "${command[@]}"
}

# Starts all processes and waits for them. Returns the status of the first failure, or 0.
attempt() {
  local port index pid code status=0 failed='' cores=()
  { read -r port && mapfile -t cores; } < <(divide) || return 1
  pids=()
  for index in $(seq 0 $((processes - 1))); do
    : >"$logs/process-$index.log"
    start "$index" "$port" "${cores[index]}" >>"$logs/process-$index.log" 2>&1 &
    pids+=("$!")
  done
  # Forwards a signal that arrived before the processes started.
  [ -z "$stopped" ] || forward
  tail -n +1 -f --pid="${pids[0]}" "$logs/process-0.log" &
  local shown="$!" left=50 # checks, 0.2 s apart, before the other processes are killed
  while [ "${#pids[@]}" -gt 0 ]; do
    sleep 0.2
    for index in "${!pids[@]}"; do
      pid="${pids[index]}"
      kill -0 "$pid" 2>/dev/null && continue
      code=0
      wait "$pid" || code=$?
      unset "pids[index]"
      if [ "$code" != 0 ] && [ -z "$failed" ]; then
        status="$code"
        failed="process $index of $processes ended with status $code, see $logs/process-$index.log"
      fi
    done
    if [ -n "$failed" ] && [ "${#pids[@]}" -gt 0 ] && [ $((left -= 1)) -le 0 ]; then
      kill -KILL "${pids[@]}" 2>/dev/null || true
    fi
  done
  wait "$shown" || true
  [ -z "$failed" ] || say "$failed"
  return "$status"
}

pids=()
stopped=
forward() {
  stopped=1
  [ "${#pids[@]}" = 0 ] || kill -TERM "${pids[@]}" 2>/dev/null || true
}
trap forward INT TERM

mkdir -p "$logs" || refuse "--workdir=$workdir: its logs cannot be written to $logs"
while true; do
  [ -z "$stopped" ] || exit 0
  status=0
  attempt || status=$?
  if [ "$status" = 0 ] || [ "$status" = 2 ] || [ -n "$stopped" ] || [ "$restart" = 0 ]; then
    exit "$status"
  fi
  restart=$((restart - 1))
  say "restarting; $restart more restarts allowed"
done
