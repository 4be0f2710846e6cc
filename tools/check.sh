#!/usr/bin/env bash
# Format, lint, types, scripts and tests, in the same .venv that launch/local.sh uses.
#
#   tools/check.sh [--all] [PYTEST ARGUMENT ...]      --all: the slow tests too
#
# Every check runs even when an earlier one failed; the exit status is 0 only if all passed.
set -euo pipefail

root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
"$root/launch/environment.sh" test
cd "$root"

selection=(-m "not slow")
if [ "${1:-}" = --all ]; then
  selection=()
  shift
fi

bin="$root/.venv/bin"
scripts=(launch/*.sh tools/*.sh .ci/run)
failed=()

check() { # NAME COMMAND...
  local name="$1" start="$SECONDS" result=passed
  shift
  printf '== %s\n' "$name"
  if ! "$@"; then
    result=FAILED
    failed+=("$name")
  fi
  printf '== %s: %s, %d s\n\n' "$name" "$result" "$((SECONDS - start))"
}

check format "$bin/ruff" format --check
check lint "$bin/ruff" check
check types "$bin/mypy" functa tools
check imports "$bin/lint-imports"
check scripts "$bin/shellcheck" -x "${scripts[@]}"

# The tests come last and nothing is printed after them but, on stderr, what else failed.
printf '== tests\n'
# A file of tests at a time on each core: what a file shares is made once.
"$bin/python" -m pytest --numprocesses=auto --maxprocesses=8 --dist=loadfile \
  ${selection[@]+"${selection[@]}"} "$@" || failed+=(tests)
if [ ${#failed[@]} -gt 0 ]; then
  printf 'tools/check.sh: failed: %s\n' "${failed[*]}" >&2
  exit 1
fi
