#!/usr/bin/env bash
# Runs an experiment on this machine: makes .venv where it is missing, then starts functa.main.
# Environment and processes only; what is computed is written in configs/.
set -euo pipefail

root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"

configs() {
  grep -l '^def get_config' "$root"/configs/*.py | sed 's|.*/|  |; s|\.py$||'
}

help() {
  cat <<END
usage: launch/local.sh NAME[:OPTIONS] [--workdir=DIR] [--config.KEY=VALUE ...]

Runs all stages of configs/NAME.py and writes everything below DIR. The same command again resumes
what was interrupted, or returns at once when all is complete.

  OPTIONS             words joined by commas: a latent shape (8x8x16), a lookup (nearest, bilinear),
                      a preset (tiny, two_core, one_gpu); the config's docstring tells which
  --workdir=DIR       default: runs/ and the experiment's name, in the current directory
  --config.KEY=VALUE  changes a value of the config, such as --config.field.width=128

  launch/local.sh digits
  launch/local.sh cifar10_spatial:8x8x16,nearest,two_core --workdir=runs/try --config.seed=1

environment variables
  FUNCTA_PYTHON       the Python to make .venv with; default: python3.12, python3.11 or python3
  FUNCTA_EXTRA        cuda or tpu: installs JAX for that accelerator too

configs
$(configs)
END
}

refuse() { # MESSAGE
  printf 'launch/local.sh: %s\n' "$1" >&2
  exit 2
}

for argument in "$@"; do
  case "$argument" in -h | --help) help && exit 0 ;; esac
done
if [ $# = 0 ]; then
  help >&2
  exit 2
fi

name="${1%%:*}"
options="${1#"$name"}"
shift
if ! configs | grep -qxF "  $name"; then
  refuse "there is no config '$name'; the configs are
$(configs)"
fi
for argument in "$@"; do
  case "$argument" in
    --workdir=?* | --config.?*=*) ;;
    *) refuse "unknown argument '$argument'; known are --workdir=DIR and --config.KEY=VALUE" ;;
  esac
done

"$root/launch/environment.sh" "${FUNCTA_EXTRA:-}"

# -P keeps a folder named functa or configs in the current directory from being imported instead.
export PYTHONUNBUFFERED=1
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}" # XLA's own log: errors only
exec "$root/.venv/bin/python" -P -m functa.main "--config=$root/configs/$name.py$options" "$@"
