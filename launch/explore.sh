#!/usr/bin/env bash
# Serves a local page to explore a run: its functaset, its field at any resolution, its generator.
#
#   launch/explore.sh runs/digits [--port N] [--data-dir DIR]
#
# Creates .venv with the extra `explore` if needed. Only programs on this machine can connect
# (127.0.0.1). The default port is the first free one from 6106. Ctrl-C ends it.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=arguments.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/arguments.sh"

usage="usage: launch/explore.sh RUN [--port N] [--data-dir DIR]; RUN is the folder of a run, such as runs/digits"
run=
passed=()
while [ $# -gt 0 ]; do
  argument="$1"
  shift
  case "$argument" in
    -h | --help)
      printf '%s\n' "$usage"
      exit 0
      ;;
    --port | --data-dir)
      [ $# -gt 0 ] || refuse "$argument needs a value; $usage"
      passed+=("$argument=$1")
      shift
      ;;
    --port=* | --data-dir=*) passed+=("$argument") ;;
    -*) refuse "unknown option $argument; $usage" ;;
    *)
      [ -z "$run" ] || refuse "one run at a time, not $run and $argument; $usage"
      run="$argument"
      ;;
  esac
done
[ -n "$run" ] || refuse "no run given; $usage"
[ -d "$run" ] || [[ "$run" == *://* ]] || refuse "no run directory $run; list yours with: ls runs"

"$root/launch/environment.sh" explore
# -P: a folder named functa where the command was given is not the package.
exec "$root/.venv/bin/python" -P -m functa.cli explore "${passed[@]+"${passed[@]}"}" -- "$run"
