#!/usr/bin/env bash
# The whole CIFAR-10 reproduction: field, functaset with 50 augmentations, classifier and generator, for
# two spatial grids and the three 1x1 sizes; ends with the table of the published numbers beside ours.
set -euo pipefail

root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"

help() {
  cat <<END
usage: tools/reproduce_cifar10.sh [--preset=one_gpu] [--runs=DIR] [--data_dir=DIR] [--seconds=N]

Runs what is not complete yet, one after the other, each as launch/local.sh does. After N seconds it
stops where it is, saved, with exit status 75, and so it does on SIGTERM and Ctrl-C: the same command
goes on from there, bit for bit, as long as DIR is kept. With all complete it prints the table, exit status 0.

  --preset=NAME   one_gpu (default), two_core or tiny; of configs/cifar10_*.py
  --runs=DIR      where the runs are; default: runs/cifar10
  --data_dir=DIR  the folder that holds cifar10/; default: data (functa prepare makes it)
  --seconds=N     stop after so many seconds; default: 0, never. The end of a stage, when it is tested, is
                  not interrupted.

FUNCTA_EXTRA=cuda installs JAX for a GPU, as for launch/local.sh.
END
}

preset=one_gpu runs=runs/cifar10 data_dir=data seconds=0
for argument in "$@"; do
  case "$argument" in
    -h | --help) help && exit 0 ;;
    --preset=one_gpu | --preset=two_core | --preset=tiny) preset="${argument#*=}" ;;
    --runs=?*) runs="${argument#*=}" ;;
    --data_dir=?*) data_dir="${argument#*=}" ;;
    --seconds=*[!0-9]* | --seconds=) help >&2 && exit 2 ;;
    --seconds=*) seconds="${argument#*=}" ;;
    *)
      printf 'tools/reproduce_cifar10.sh: unknown argument %s\n' "$argument" >&2
      help >&2
      exit 2
      ;;
  esac
done

experiments=(
  "cifar10_spatial:8x8x16,nearest"
  "cifar10_spatial:4x4x64,nearest"
  "cifar10_functa:1x1x256"
  "cifar10_functa:1x1x512"
  "cifar10_functa:1x1x1024"
)
child=""
asked="" # to stop
trap 'asked=yes; if [ "$child" ]; then kill -TERM "$child" 2>/dev/null || true; fi' TERM INT

for experiment in "${experiments[@]}"; do
  if [ "$asked" ]; then exit 75; fi
  workdir="$runs/${experiment//[:,]/-}-$preset"
  if [ -e "$workdir/generate/metrics.json" ]; then continue; fi
  limit=()
  if [ "$seconds" -gt 0 ]; then
    left=$((10#$seconds - SECONDS))
    if [ "$left" -le 0 ]; then exit 75; fi
    # --foreground: one SIGTERM, to the run alone, which saves and ends; a second would end it at once.
    limit=(timeout --foreground --signal=TERM "$left")
  fi
  ${limit[@]+"${limit[@]}"} "$root/launch/local.sh" "$experiment,$preset" "--workdir=$workdir" \
    "--config.data.data_dir=$data_dir" &
  child=$!
  status=0
  wait "$child" || status=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ends the waiting, not the run
    status=0
    wait "$child" || status=$?
  done
  child=""
  case "$status" in
    0 | 124) ;; # 124: timeout had to ask
    *) if [ -z "$asked" ]; then exit "$status"; fi ;;
  esac
  if [ "$asked" ] || [ ! -e "$workdir/generate/metrics.json" ]; then exit 75; fi
done
"$root/.venv/bin/python" "$root/tools/cifar10_table.py" "$runs"
