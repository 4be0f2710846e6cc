#!/usr/bin/env bash
# Runs an experiment on a Cloud TPU of any number of workers, from a machine that has gcloud.
# Environment and processes only; what is computed is written in configs/.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=arguments.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/arguments.sh"

help() {
  cat <<END_OF_HELP
usage: launch/tpu_pod.sh NAME[:OPTIONS] [--restart=K] [--dry-run] [--config.KEY=VALUE ...]

Makes the TPU where there is none, copies this tree to every worker, starts functa.main on all of
them and shows what worker 0 says; all that worker N says is in ~/functa.log there. The exit status is
the run's. The same command again resumes what was interrupted. The TPU is left as it is at the end.

  OPTIONS             words joined by commas: a latent shape (8x8x16), a lookup (nearest, bilinear),
                      a preset (tiny, two_core, one_gpu); the config's docstring tells which
  --restart=K         after a preemption makes the TPU again and goes on; after another failure (not of
                      the command or the config) starts again; up to K times in all. Default: 10
  --dry-run           prints the commands, runs none
  --config.KEY=VALUE  changes a value of the config, such as --config.field.width=128

  export TPU_NAME=pod ZONE=us-east5-b PROJECT=my-project WORKDIR=gs://my-bucket/cifar10
  ACCELERATOR_TYPE=v5litepod-16 SPOT=1 launch/tpu_pod.sh cifar10_spatial

Copied is what git tracks, with the changes that are not committed; files that git does not know stay here.
Ctrl-C and SIGTERM are handed on: the workers save and stop. If this machine goes away instead, the run
goes on; the same command then stops it (it saves) and starts it again from there.

environment variables
  TPU_NAME, ZONE, PROJECT   the TPU, which is made if there is none of this name
  WORKDIR             directory of the run: gs://BUCKET/FOLDER
  ACCELERATOR_TYPE    to make a TPU: v5litepod-16, v6e-8, v4-32, ...
  RUNTIME_VERSION     to make a TPU; default: the one that goes with v4, v5litepod, v5p and v6e
  SPOT                1 asks for a TPU that may be taken away (preempted) and costs less
  WAIT_SECONDS        how long to wait for a TPU; default: 86400
  POLL_SECONDS        between two looks at the TPU; default: 20
  GRACE_SECONDS       after a worker's failure, how long the others may take to end; default: 30

configs
$(configs)
END_OF_HELP
}

read_experiment "$@"
shift
restart=10
dry=''
passed=()
for argument in "$@"; do
  case "$argument" in
    --restart=*) restart="${argument#*=}" ;;
    --dry-run) dry=1 ;;
    --config.?*=*) passed+=("$argument") ;;
    --workdir | --workdir=*) refuse "$argument: the environment variable WORKDIR names the directory" ;;
    *)
      refuse "unknown argument '$argument'; known are --restart=K, --dry-run and --config.KEY=VALUE"
      ;;
  esac
done
[[ "$restart" =~ ^[0-9]{1,6}$ ]] || refuse "--restart=$restart: want a number from 0"

missing=()
for variable in TPU_NAME ZONE PROJECT WORKDIR; do
  [ -n "${!variable:-}" ] || missing+=("$variable")
done
[ "${#missing[@]}" = 0 ] || refuse "not set: ${missing[*]} (see launch/tpu_pod.sh --help)"
[[ "$WORKDIR" =~ ^gs://[^/]+/.+ ]] ||
  refuse "WORKDIR=$WORKDIR: want gs://BUCKET/FOLDER, a place that all workers share and that outlives them"
wait_seconds="${WAIT_SECONDS:-86400}"
poll_seconds="${POLL_SECONDS:-20}"
grace_seconds="${GRACE_SECONDS:-30}"
[[ "$wait_seconds" =~ ^[0-9]{1,8}$ ]] || refuse "WAIT_SECONDS=$wait_seconds: want whole seconds"
[[ "$poll_seconds" =~ ^[0-9]{1,4}(\.[0-9]+)?$ ]] || refuse "POLL_SECONDS=$poll_seconds: want seconds"
[[ "$grace_seconds" =~ ^[0-9]{1,4}$ ]] || refuse "GRACE_SECONDS=$grace_seconds: want whole seconds"
case "${SPOT:-}" in '' | 0 | 1) ;; *) refuse "SPOT=$SPOT: want 1, 0 or nothing" ;; esac
type="${ACCELERATOR_TYPE:-}"
case "$type" in
  v4-*) version=tpu-ubuntu2204-base ;;
  v5litepod-*) version=v2-alpha-tpuv5-lite ;;
  v5p-*) version=v2-alpha-tpuv5 ;;
  v6e-*) version=v2-alpha-tpuv6e ;;
  *) version='' ;;
esac
version="${RUNTIME_VERSION:-$version}"
[ -n "$dry" ] || command -v gcloud >/dev/null ||
  refuse "gcloud is not there: https://cloud.google.com/sdk/docs/install"
git -C "$root" rev-parse --verify -q HEAD >/dev/null 2>&1 ||
  refuse "$root is not a git checkout, which tells the files to copy"
git -C "$root" ls-files --error-unmatch "configs/$name.py" >/dev/null 2>&1 ||
  refuse "git does not know configs/$name.py, so it would not be copied: git add configs/$name.py"

place=("--zone=$ZONE" "--project=$PROJECT" --quiet)
# A worker that is gone is noticed within two minutes.
links=(--ssh-flag=-oConnectTimeout=30 --ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=4)
folder="${TMPDIR:-/tmp}/functa-pod" # --dry-run makes none
if [ -z "$dry" ]; then
  folder="$(mktemp -d)"
  trap '[ "$BASHPID" != "$$" ] || rm -rf "$folder"' EXIT
fi

stopped=''
trap 'stopped=1' INT TERM

# Runs a command, with --dry-run prints it. As a child, so that a signal is heard before it has ended.
call() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@"
    echo
    return
  fi
  local child status=0
  "$@" &
  child="$!"
  wait "$child" || status=$?
  if [ -n "$stopped" ]; then
    kill -TERM "$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
    return 143
  fi
  return "$status"
}

on() { # WORKER COMMAND: in the worker's shell
  call gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${place[@]}" "${links[@]}" "--worker=$1" "--command=$2"
}

# Sets `state`: what gcloud calls it, or ABSENT. Fails where gcloud itself does.
look() { # tpu-vm | queued-resources
  local field='value(state)'
  [ "$1" = tpu-vm ] || field='value(state.state)'
  state="$(gcloud compute tpus "$1" describe "$TPU_NAME" "${place[@]}" "--format=$field" 2>"$folder/error")" &&
    return
  state=ABSENT
  grep -q NOT_FOUND "$folder/error" && return
  cat "$folder/error" >&2
  return 1
}

create() {
  local spot=()
  [ "${SPOT:-}" != 1 ] || spot=(--spot)
  call gcloud compute tpus queued-resources create "$TPU_NAME" "--node-id=$TPU_NAME" "${place[@]}" \
    "--accelerator-type=$type" "--runtime-version=$version" ${spot[@]+"${spot[@]}"}
}

# Takes away what is left of a TPU that cannot be used any more.
remove() {
  look queued-resources || return
  if [ "$state" != ABSENT ]; then
    call gcloud compute tpus queued-resources delete "$TPU_NAME" "${place[@]}" --force || return
  fi
  look tpu-vm || return
  if [ "$state" != ABSENT ]; then
    call gcloud compute tpus tpu-vm delete "$TPU_NAME" "${place[@]}" || return
  fi
}

known() { # the two values without which no TPU can be made
  [ -n "$type" ] || refuse "there is no TPU $TPU_NAME in $ZONE; to have it made, set ACCELERATOR_TYPE"
  [ -n "$version" ] || refuse "to have a TPU $type made, set RUNTIME_VERSION"
}

# What a TPU that is there was made as: it may have to be made again.
remember() {
  local field
  for field in acceleratorType runtimeVersion; do
    call gcloud compute tpus tpu-vm describe "$TPU_NAME" "${place[@]}" "--format=value($field)" || return
  done >"$folder/made"
  { read -r type && read -r version; } <"$folder/made"
  [ "$type" = "${ACCELERATOR_TYPE:-$type}" ] ||
    refuse "the TPU $TPU_NAME is a $type, but ACCELERATOR_TYPE=$ACCELERATOR_TYPE"
}

# Returns once the TPU can be used.
ensure() {
  local until=$((SECONDS + wait_seconds)) told='' seen=''
  while [ -z "$stopped" ]; do
    look tpu-vm || return
    case "$state" in
      READY) remember && return ;;
      ABSENT)
        known
        look queued-resources || return
        case "$state" in
          ABSENT)
            say "making the TPU $TPU_NAME: $type, $version${SPOT:+, spot: $SPOT}"
            create || return
            state=REQUESTED
            ;;
          FAILED | SUSPENDED)
            if [ -n "$seen" ]; then
              say "the request for $TPU_NAME has become $state"
              return 1
            fi
            remove || return # of an earlier time
            continue
            ;;
        esac
        seen=1
        ;;
      PREEMPTED | TERMINATED)
        known
        say "the TPU $TPU_NAME was preempted"
        remove || return
        continue
        ;;
      STOPPED) refuse "the TPU $TPU_NAME is stopped: gcloud compute tpus tpu-vm start $TPU_NAME --zone=$ZONE" ;;
    esac
    if [ "$SECONDS" -ge "$until" ]; then
      say "no TPU within WAIT_SECONDS=$wait_seconds; the request is kept: the same command waits for it again"
      return 1
    fi
    [ "$told" = "$state" ] || say "waiting for the TPU $TPU_NAME: $state"
    told="$state"
    call sleep "$poll_seconds" || return
  done
  return 143
}

# Tracked files as they are now; an unfinished copy or unpacking is never used.
# shellcheck disable=SC2016 # for another shell
pack='cd "$0" && mkdir -p "$1" && commit="$(git -c user.name=functa -c user.email=functa@localhost stash create)" &&
  git archive --format=tar.gz "--output=$1/functa.tar.gz" "${commit:-HEAD}" &&
  cd "$1" && { if command -v sha256sum; then sha256sum functa.tar.gz; else shasum -a 256 functa.tar.gz; fi; } |
  tail -n 1 >functa.sha256'
# shellcheck disable=SC2016 # for the workers' shells
unpack='set -e; cd; sha256sum --check --quiet functa.sha256
if [ -e functa/.git ]; then echo "$HOME/functa is a git checkout; move it away" >&2; exit 2; fi
if [ -e functa/launch/tpu_worker.sh ]; then bash functa/launch/tpu_worker.sh stop; fi
rm -rf functa.new functa.old; mkdir functa.new; tar -xzf functa.tar.gz -C functa.new
if [ -d functa/.venv ]; then mv functa/.venv functa.new/.venv; fi
if [ -e functa ]; then mv functa functa.old; fi
mv functa.new functa; rm -rf functa.old
bash functa/launch/tpu_worker.sh prepare'

copy() {
  call gcloud compute tpus tpu-vm scp "$folder/functa.tar.gz" "$folder/functa.sha256" "$TPU_NAME:" \
    "${place[@]}" --worker=all &&
    on all "$unpack"
}

printf -v command ' %q' "$experiment" "--workdir=$WORKDIR" ${passed[@]+"${passed[@]}"}
worker='bash functa/launch/tpu_worker.sh'

# The statuses that workers have ended with, in the order of their ends.
ends() { sed -n 's/^functa: worker .* ended with status \([0-9]\{1,3\}\)$/\1/p' "$folder/told"; }

# Runs until all workers have ended. Sets `status`: of the first worker that failed, 0 if none did.
run() {
  local main follow wanted code turns failed='' deadline=0
  : >"$folder/told"
  wanted="$(gcloud compute tpus tpu-vm describe "$TPU_NAME" "${place[@]}" \
    '--format=value(networkEndpoints.len())')" || wanted=''
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${place[@]}" "${links[@]}" --worker=all \
    "--command=$worker run$command" >"$folder/told" 2>&1 </dev/null &
  main="$!"
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${place[@]}" "${links[@]}" --worker=0 \
    "--command=$worker follow" 2>/dev/null </dev/null &
  follow="$!"
  while kill -0 "$main" 2>/dev/null; do
    sleep 0.5
    if [ -z "$failed" ] && ends | grep -qvx 0; then
      failed=1
      deadline=$((SECONDS + grace_seconds)) # a failure ends the others by itself, unless they hang
    fi
    if [ -n "$stopped" ] || { [ -n "$failed" ] && [ "$SECONDS" -ge "$deadline" ]; }; then
      halt
    fi
  done
  code=0
  wait "$main" || code=$?
  # Where only the link is lost, or Ctrl-C has ended gcloud too, the workers do not know.
  if [ -n "$stopped" ] || [ "$code" != 0 ]; then halt; fi
  turns=50 # it ends with the run, unless the link is gone
  while kill -0 "$follow" 2>/dev/null && [ $((turns -= 1)) -gt 0 ]; do sleep 0.1; done
  kill -TERM "$follow" 2>/dev/null || true
  wait "$follow" || true

  status="$(ends | grep -vx 0 | head -n 1)" || true
  if ends | grep -qx 2; then status=2; fi
  status="${status:-$code}"
  if [ "$status" = 0 ] && [[ "$wanted" =~ ^[0-9]+$ ]] && [ "$(ends | wc -l)" -lt "$wanted" ]; then
    say "of $wanted workers only $(ends | wc -l) have told how they ended"
    status=1
  fi
  if [ "$status" != 0 ] && [ "$status" != 75 ]; then
    say "the run ended with status $status; ~/functa.log on every worker tells more. gcloud said:"
    tail -n 20 "$folder/told" >&2
  fi
}

halt() { # all workers; they save first. Not by `call`, which the signal that brought us here would end.
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${place[@]}" "${links[@]}" --worker=all \
    "--command=$worker stop" >/dev/null 2>&1 </dev/null || true
}

if [ -n "$dry" ]; then
  echo "# Unless the TPU $TPU_NAME is there, it is made; then until its state is READY the state is asked for:"
  type="${type:-ACCELERATOR_TYPE}" version="${version:-RUNTIME_VERSION}"
  create
  call gcloud compute tpus tpu-vm describe "$TPU_NAME" "${place[@]}" '--format=value(state)'
  echo "# This tree, to all workers, and its environment:"
  call bash -c "$pack" "$root" "$folder"
  copy
  echo "# The run, and what worker 0 says:"
  on all "$worker run$command"
  on 0 "$worker follow"
  echo "# After a preemption, before all of this again:"
  call gcloud compute tpus queued-resources delete "$TPU_NAME" "${place[@]}" --force
  echo "# At Ctrl-C, SIGTERM or the failure of a worker:"
  on all "$worker stop"
  exit 0
fi

# Once: what is started again after hours is the same code.
call bash -c "$pack" "$root" "$folder" || exit
while true; do
  status=0
  ensure || status=$?
  if [ "$status" = 0 ]; then
    say "copying the tree to $TPU_NAME"
    copy || status=$?
  fi
  if [ "$status" = 0 ] && [ -z "$stopped" ]; then run; fi
  if [ -n "$stopped" ]; then
    [ "$status" != 75 ] || status=0
    say "stopped; the same command goes on from there. $TPU_NAME is kept, and so is a request for it"
    exit "$status"
  fi
  if [ "$status" = 0 ] || [ "$status" = 2 ]; then exit "$status"; fi
  if [ "$restart" = 0 ]; then exit "$status"; fi
  restart=$((restart - 1))
  say "starting again, $restart more times if need be"
  call sleep "$poll_seconds" || true
done
