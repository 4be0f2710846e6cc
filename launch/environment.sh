#!/usr/bin/env bash
# Creates .venv in the project's root with the package, editable, and one extra of setup.cfg.
#
#   launch/environment.sh [EXTRA]      EXTRA: explore, test, cuda, tpu, ...; none by default
#
# cuda is cuda13 if the NVIDIA driver of this machine is of version 580 or later, else cuda12, which
# works with later drivers too.
# The launchers and tools/check.sh call it first. It returns at once if .venv is complete.
# FUNCTA_PYTHON selects a Python (3.11, 3.12 or 3.13); the default is the first suitable one of
# python3.12, python3.11 and python3. Exit status: 0 ready, 1 an installation failed, 2 the user must
# install or fix something first.
#
# .venv/functa.stamp lists the contents of .venv: extras, Python and folder, then setup.cfg as it was
# installed. It is removed before an installation and written after it, so that a killed installation
# does not count as complete.
set -euo pipefail

root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
venv="$root/.venv"
python="$venv/bin/python"
stamp="$venv/functa.stamp"
lock="$venv/functa.lock"
log="$venv/install.log"
extra="${1:-}"

unset PYTHONPATH PYTHONHOME # pip would count packages found through them as installed
PATH=":$PATH:" # the Python of an activated .venv must not create .venv
PATH="${PATH//:"$venv/bin":/:}"

say() { printf 'functa: %s\n' "$*" >&2; }

stop() { # STATUS MESSAGE...
  local status="$1"
  shift
  say "$@"
  exit "$status"
}

show_log_and_stop() { # MESSAGE...
  say "$@"
  tail -n 20 "$log" >&2
  stop 1 "the full output is in $log; run the same command to try again"
}

version_of() { # PYTHON: prints 3.11, or fails if it does not run
  "$1" -ISc 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

supported() { # VERSION
  case "$1" in 3.11 | 3.12 | 3.13) true ;; *) false ;; esac
}

can_make_venvs() { # PYTHON: Debian and Ubuntu ship ensurepip in a package of its own
  "$1" -c 'import ensurepip, venv' 2>/dev/null
}

# Sets `extras` (as "test,cuda") and `up_to_date`. Fails unless .venv is complete and in this folder.
read_stamp() {
  local version place setup
  [ -f "$stamp" ] || return 1
  version="$(version_of "$python")" || return 1
  if [ -n "${FUNCTA_PYTHON:-}" ] && [ "$(version_of "$FUNCTA_PYTHON")" != "$version" ]; then
    return 1
  fi
  {
    IFS= read -r extras
    IFS= read -r place
    setup="$(cat)"
  } <"$stamp" || return 1
  [ "$place" = "python $version in $root" ] || return 1
  extras="${extras#extras }"
  up_to_date=no
  if [ "$setup" = "$(cat "$root/setup.cfg")" ]; then up_to_date=yes; fi
}

has_extra() {
  case ",$extras," in *",$extra,"*) true ;; *) [ -z "$extra" ] ;; esac
}

ready() { read_stamp && [ "$up_to_date" = yes ] && has_extra; }

# Sets `base` and `version`: a supported Python, if possible one that can make virtual environments.
find_python() {
  local candidate found
  base=""
  if [ -n "${FUNCTA_PYTHON:-}" ]; then
    found="$(version_of "$FUNCTA_PYTHON")" ||
      stop 2 "FUNCTA_PYTHON=$FUNCTA_PYTHON does not run; it must name a Python 3.11, 3.12 or 3.13"
    supported "$found" ||
      stop 2 "FUNCTA_PYTHON=$FUNCTA_PYTHON is Python $found; Python 3.11, 3.12 or 3.13 is needed"
    base="$FUNCTA_PYTHON"
    version="$found"
    return
  fi
  for candidate in python3.12 python3.11 python3; do
    found="$(version_of "$candidate")" || continue
    supported "$found" || continue
    if can_make_venvs "$candidate"; then
      base="$candidate"
      version="$found"
      return
    fi
    if [ -z "$base" ]; then
      base="$candidate"
      version="$found"
    fi
  done
  [ -n "$base" ] || stop 2 "no Python 3.11, 3.12 or 3.13 among python3.12, python3.11 and python3." \
    "Install one (Debian 12, Ubuntu 24.04 and newer: apt-get update && apt-get install -y python3" \
    "python3-venv) or name one: FUNCTA_PYTHON=/path/to/python"
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

apt_install() { # PACKAGE; waits while a new machine installs its first updates
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update || return 1
  as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq -o DPkg::Lock::Timeout=300 install -y "$1"
}

add_venv_package() {
  local package="python$version-venv"
  local by_hand="apt-get update && apt-get install -y $package"
  local need="$base (Python $version) has no ensurepip, so it cannot make a virtual environment"
  if ! command -v apt-get >/dev/null || ! as_root true 2>/dev/null; then
    stop 2 "$need. As root: $by_hand"
  fi
  say "$need; installing $package"
  apt_install "$package" >>"$log" 2>&1 || show_log_and_stop "that failed (by hand: $by_hand):"
  can_make_venvs "$base" ||
    stop 2 "$need, not even with $package installed. Name another: FUNCTA_PYTHON=/path/to/python"
}

make_venv() {
  rm -f "$stamp"
  find "$venv" -mindepth 1 -maxdepth 1 ! -name "${lock##*/}" -exec rm -rf {} +
  can_make_venvs "$base" || add_venv_package
  say "making $venv with Python $version"
  "$base" -m venv "$venv" >>"$log" 2>&1 || show_log_and_stop "$base -m venv $venv failed:"
}

install() {
  local start="$SECONDS"
  rm -f "$stamp"
  # compat: a path file, so that the package precedes other folders named functa.
  (cd "$root" && "$python" -m pip install --use-pep517 --no-input --progress-bar off \
    --config-settings editable_mode=compat \
    --editable ".${extras:+[$extras]}") >>"$log" 2>&1 || show_log_and_stop "the installation failed:"
  printf 'extras %s\npython %s in %s\n' "$extras" "$(version_of "$python")" "$root" >"$stamp.new"
  cat "$root/setup.cfg" >>"$stamp.new"
  mv "$stamp.new" "$stamp"
  say "$venv is ready after $((SECONDS - start)) s"
}

if [ "$extra" = cuda ]; then
  IFS= read -r driver < <(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null) || driver=''
  extra=cuda12
  if [[ "${driver%%.*}" =~ ^[0-9]+$ ]] && [ "${driver%%.*}" -ge 580 ]; then extra=cuda13; fi
fi
if [ -n "$extra" ] &&
  ! sed -n '/^\[options.extras_require\]/,/^$/p' "$root/setup.cfg" | grep -qx "$extra ="; then
  stop 2 "setup.cfg has no extra '$extra'"
fi
if ready; then exit 0; fi

if [ -e "$venv" ] && [ ! -e "$lock" ] && [ -n "$(ls -A "$venv")" ]; then
  stop 2 "$venv was not made by launch/environment.sh; move it away, then try again"
fi
read_stamp || find_python # reports a missing Python before anything is written
mkdir -p "$venv"
exec 9>>"$lock"
if command -v flock >/dev/null && ! flock -n 9; then
  say "waiting for another installation into $venv"
  flock 9
fi
if ready; then exit 0; fi # the other process installed it

if read_stamp; then
  say "bringing $venv up to date with setup.cfg"
else
  find_python
  extras=""
  make_venv
  say "installing the package and its dependencies: about 1.1 GB, one to two minutes"
fi
has_extra || extras="${extras:+$extras,}$extra"
install
