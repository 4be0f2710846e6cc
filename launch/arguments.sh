#!/usr/bin/env bash
# Functions shared by the launchers, which source this file and define `help`.

root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"

configs() {
  grep -l '^def get_config' "$root"/configs/*.py | sed 's|.*/|  |; s|\.py$||'
}

say() { printf 'launch/%s: %s\n' "${0##*/}" "$*" >&2; }

refuse() { # MESSAGE
  say "$1"
  exit 2
}

# Appends KEY=VALUE of --env=KEY=VALUE to the array `variables`: environment of all processes.
variables=()
add_variable() { # --env=KEY=VALUE
  [[ "$1" =~ ^--env=[A-Za-z_][A-Za-z0-9_]*= ]] || refuse "$1: want --env=KEY=VALUE"
  variables+=("${1#--env=}")
}

# Sets experiment (NAME[:OPTIONS]), name, options (with their colon) and local_workdir (runs/NAME-OPTIONS).
read_experiment() { # ARGUMENTS OF THE LAUNCHER...
  local argument
  for argument in "$@"; do
    case "$argument" in -h | --help) help && exit 0 ;; esac
  done
  if [ $# = 0 ]; then
    help >&2
    exit 2
  fi
  experiment="$1"
  name="${experiment%%:*}"
  options="${experiment#"$name"}"
  if ! configs | grep -qxF "  $name"; then
    refuse "there is no config '$name'; the configs are
$(configs)"
  fi
  local_workdir="runs/$name${options:+-${options:1}}"
  local_workdir="${local_workdir//,/-}"
}
