#!/usr/bin/env bash
# Runs an experiment on this machine: makes .venv where it is missing, then starts functa.main.
# Environment and processes only; what is computed is written in configs/.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=arguments.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/arguments.sh"

help() {
  cat <<END
usage: launch/local.sh NAME[:OPTIONS] [--processes=N] [--devices=M] [--restart=K] [--workdir=DIR]
                       [--config.KEY=VALUE ...]

Runs all stages of configs/NAME.py and writes everything below DIR. The same command again resumes
what was interrupted, or returns at once when all is complete.

  OPTIONS             words joined by commas: a latent shape (8x8x16), a lookup (nearest, bilinear),
                      a preset (tiny, two_core, one_gpu); the config's docstring tells which
  --processes=N       N processes that work together as those of a cluster do: the cores are divided among
                      them, with FUNCTA_EXTRA=cuda each has one GPU. Each writes DIR.logs/process-K.log,
                      process 0 here too. If one dies, all end, with its exit status
  --devices=M         M CPU devices in all, a multiple of N, for a machine without accelerators; default: N.
                      With the same M numbers are the same to the last bit, whatever N is
  --restart=K         after a failure (not of the command or the config) starts again, up to K times
  --workdir=DIR       default: runs/ and the experiment's name, in the current directory
  --config.KEY=VALUE  changes a value of the config, such as --config.field.width=128

  launch/local.sh digits
  launch/local.sh cifar10_spatial:8x8x16,nearest,two_core --workdir=runs/try --config.seed=1
  launch/local.sh digits --processes=2 --restart=3

environment variables
  FUNCTA_PYTHON       the Python to make .venv with; default: python3.12, python3.11 or python3
  FUNCTA_EXTRA        cuda or tpu: installs JAX for that accelerator too

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
    --config.?*=*) passed+=("$argument") ;;
    *)
      refuse "unknown argument '$argument'; known are --processes=N, --devices=M, --restart=K, --workdir=DIR and \
--config.KEY=VALUE"
      ;;
  esac
done
[[ "$processes" =~ ^[1-9][0-9]{0,3}$ ]] || refuse "--processes=$processes: want a number from 1"
[[ "${devices:-$processes}" =~ ^[1-9][0-9]{0,3}$ ]] && [ $((${devices:-$processes} % processes)) = 0 ] ||
  refuse "--devices=$devices: want a multiple of the $processes processes"
[[ "$restart" =~ ^(0|[1-9][0-9]{0,5})$ ]] || refuse "--restart=$restart: want a number from 0"

"$root/launch/environment.sh" "${FUNCTA_EXTRA:-}"

# -P keeps a folder named functa or configs in the current directory from being imported instead.
export PYTHONUNBUFFERED=1
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}" # XLA's own log: errors only
python="$root/.venv/bin/python"
program=("$python" -P -m functa.main "--config=$root/configs/$name.py$options" ${passed[@]+"${passed[@]}"})

# A free port, and the cores of each process.
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

# Matrix products are cut by the number of threads, which XLA reads from NPROC: the same for every number of
# processes. Twice as many as devices, since a thread of each may wait for the others while one computes.
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
    [ "${FUNCTA_EXTRA:-}" != cuda ] || export CUDA_VISIBLE_DEVICES="$1"
  fi
  exec "${command[@]}"
}

# Starts all, waits for all; the status of the first that failed, 0 if none did.
attempt() {
  local port index pid code status=0 failed='' cores=()
  { read -r port && mapfile -t cores; } < <(divide) || return 1
  pids=()
  for index in $(seq 0 $((processes - 1))); do
    : >"$logs/process-$index.log"
    start "$index" "$port" "${cores[index]}" >>"$logs/process-$index.log" 2>&1 &
    pids+=("$!")
  done
  # A signal that came while there was nobody yet to hand it on to.
  [ -z "$stopped" ] || forward
  tail -n +1 -f --pid="${pids[0]}" "$logs/process-0.log" &
  local shown="$!" left=$((10 * 5)) # turns that the others have to end by themselves
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
  say "starting again, $restart more times if need be"
done
