#!/usr/bin/env bash
# Runs an experiment on a Cloud TPU with any number of workers, from a machine with gcloud.
# Sets up environment and processes only; configs/ defines the computation.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=arguments.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/arguments.sh"

help() {
  cat <<END_OF_HELP
usage: launch/tpu_pod.sh NAME[:OPTIONS] [--restart=K] [--dry-run] [--env=KEY=VALUE ...]
                         [--config.KEY=VALUE ...]

Checks the config and the data, creates the TPU if it does not exist, copies this folder to every worker, runs functa.main on all
workers, and shows the output of worker 0. Each worker writes its output to its ~/functa.log. The exit
status is that of the run. The same command resumes an interrupted run. The TPU is not deleted.

  OPTIONS             words joined by commas: a latent shape (8x8x16), an interpolation (nearest,
                      bilinear), a preset (tiny, two_core, one_gpu); the config's docstring lists them
  --restart=K         restarts up to K times: recreates the TPU after a preemption, and restarts the run
                      after a failure, except for errors of the command or the config. Default: 10
  --dry-run           prints the commands and runs none
  --env=KEY=VALUE     sets an environment variable of all workers, such as LIBTPU_INIT_ARGS
  --config.KEY=VALUE  sets a value of the config, such as --config.field.width=128

  export TPU_NAME=pod ZONE=us-east5-b PROJECT=my-project
  export WORKDIR=gs://my-bucket/cifar10 DATA_DIR=gs://my-bucket/data
  ACCELERATOR_TYPE=v5litepod-16 SPOT=1 launch/tpu_pod.sh cifar10_spatial

Files tracked by git are copied, with uncommitted changes; untracked files are not. On Ctrl-C and
SIGTERM the workers save and stop. If the connection to this machine is lost, the run continues; the
same command then stops it with its state saved, and resumes it.

environment variables
  TPU_NAME, ZONE, PROJECT   the TPU; created if it does not exist
  WORKDIR             directory of the run: gs://BUCKET/FOLDER
  DATA_DIR            directory of the data set: gs://BUCKET/FOLDER; not needed for the digits
  ACCELERATOR_TYPE    type of a TPU to create: v5litepod-16, v6e-8, v4-32, ...
  RUNTIME_VERSION     of a TPU to create; has a default for v4, v5litepod, v5p and v6e
  SPOT                1 requests a preemptible TPU, which costs less
  WAIT_SECONDS        maximum wait for a TPU; default: 86400
  POLL_SECONDS        interval between checks of the TPU's state; default: 20
  GRACE_SECONDS       time for other workers to end after one has failed; default: 30

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
    --env=*) add_variable "$argument" ;;
    --config.?*=*) passed+=("$argument") ;;
    --workdir | --workdir=*) refuse "$argument: the environment variable WORKDIR names the directory" ;;
    *)
      refuse "unknown argument '$argument'; known are --restart=K, --dry-run, --env=KEY=VALUE and \
--config.KEY=VALUE"
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
  refuse "WORKDIR=$WORKDIR: want gs://BUCKET/FOLDER, which all workers share"
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
  refuse "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
git -C "$root" rev-parse --verify -q HEAD >/dev/null 2>&1 ||
  refuse "$root is not a git checkout; git lists the files to copy"
git -C "$root" ls-files --error-unmatch "configs/$name.py" >/dev/null 2>&1 ||
  refuse "configs/$name.py is not tracked by git and would not be copied: git add configs/$name.py"

data="${DATA_DIR:-}"
for argument in ${passed[@]+"${passed[@]}"}; do
  case "$argument" in --config.data.data_dir=*) data="${argument#*=}" ;; esac
done
if ! grep -q 'source="digits"' "$root/configs/$name.py"; then # the digits come with scikit-learn
  [[ "$data" =~ ^gs://[^/]+ ]] || refuse "DATA_DIR=$data: want gs://BUCKET/FOLDER, which holds the data set of \
configs/$name.py, made by functa prepare"
  [ -n "$dry" ] || gcloud storage ls "$data" "--project=$PROJECT" >/dev/null 2>&1 ||
    refuse "DATA_DIR=$data does not exist or cannot be read: copy the data set there, for example by \
gcloud storage cp --recursive data/* $data"
  passed+=("--config.data.data_dir=$data")
fi

place=("--zone=$ZONE" "--project=$PROJECT" --quiet)
# A lost worker is noticed within two minutes.
links=(--ssh-flag=-oConnectTimeout=30 --ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=4)
folder="${TMPDIR:-/tmp}/functa-pod" # --dry-run makes none
if [ -z "$dry" ]; then
  folder="$(mktemp -d)"
  trap '[ "$BASHPID" != "$$" ] || rm -rf "$folder"' EXIT
fi

stopped=''
trap 'stopped=1' INT TERM

# Runs a command, or prints it with --dry-run. The command is a child process, so that bash handles
# signals while it runs.
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

# Sets `state` to gcloud's name of it, or ABSENT. Fails if gcloud fails.
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

# Deletes the remains of an unusable TPU.
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

known() { # checks the values needed to create a TPU
  [ -n "$type" ] || refuse "there is no TPU $TPU_NAME in $ZONE; set ACCELERATOR_TYPE to create it"
  [ -n "$version" ] || refuse "set RUNTIME_VERSION to create a TPU $type"
}

# Sets type and version of an existing TPU, for creating it again.
remember() {
  local field
  for field in acceleratorType runtimeVersion; do
    call gcloud compute tpus tpu-vm describe "$TPU_NAME" "${place[@]}" "--format=value($field)" || return
  done >"$folder/made"
  { read -r type && read -r version; } <"$folder/made"
  [ "$type" = "${ACCELERATOR_TYPE:-$type}" ] ||
    refuse "the TPU $TPU_NAME is a $type, but ACCELERATOR_TYPE=$ACCELERATOR_TYPE"
}

# Returns when the TPU is ready.
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
            say "creating the TPU $TPU_NAME: $type, $version${SPOT:+, spot: $SPOT}"
            create || return
            state=REQUESTED
            ;;
          FAILED | SUSPENDED)
            if [ -n "$seen" ]; then
              say "the request for $TPU_NAME is now $state"
              return 1
            fi
            remove || return # an earlier request
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
      say "no TPU within WAIT_SECONDS=$wait_seconds; the request is kept; the same command waits for it again"
      return 1
    fi
    [ "$told" = "$state" ] || say "waiting for the TPU $TPU_NAME: $state"
    told="$state"
    call sleep "$poll_seconds" || return
  done
  return 143
}

# Copies tracked files in their current state. Incomplete copies are never used.
# shellcheck disable=SC2016 # expanded by another shell
pack='cd "$0" && mkdir -p "$1" && commit="$(git -c user.name=functa -c user.email=functa@localhost stash create)" &&
  git archive --format=tar.gz "--output=$1/functa.tar.gz" "${commit:-HEAD}" &&
  cd "$1" && { if command -v sha256sum; then sha256sum functa.tar.gz; else shasum -a 256 functa.tar.gz; fi; } |
  tail -n 1 >functa.sha256'
# shellcheck disable=SC2016 # expanded by the workers' shells
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
[ "${#variables[@]}" = 0 ] || worker="env$(printf ' %q' "${variables[@]}") $worker"

# Prints the exit statuses of workers, in the order in which they ended.
ends() { sed -n 's/^functa: worker .* ended with status \([0-9]\{1,3\}\)$/\1/p' "$folder/told"; }

# Runs until all workers have ended. Sets `status` to that of the first failure, or 0.
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
      deadline=$((SECONDS + grace_seconds)) # after a failure the others end, unless they hang
    fi
    if [ -n "$stopped" ] || { [ -n "$failed" ] && [ "$SECONDS" -ge "$deadline" ]; }; then
      halt
    fi
  done
  code=0
  wait "$main" || code=$?
  # Workers do not notice a lost connection, or that Ctrl-C has ended gcloud.
  if [ -n "$stopped" ] || [ "$code" != 0 ]; then halt; fi
  turns=50 # it ends with the run, unless the connection is lost
  while kill -0 "$follow" 2>/dev/null && [ $((turns -= 1)) -gt 0 ]; do sleep 0.1; done
  kill -TERM "$follow" 2>/dev/null || true
  wait "$follow" || true

  status="$(ends | grep -vx 0 | head -n 1)" || true
  if ends | grep -qx 2; then status=2; fi
  status="${status:-$code}"
  if [ "$status" = 0 ] && [[ "$wanted" =~ ^[0-9]+$ ]] && [ "$(ends | wc -l)" -lt "$wanted" ]; then
    say "only $(ends | wc -l) of $wanted workers reported their exit status"
    status=1
  fi
  if [ "$status" != 0 ] && [ "$status" != 75 ]; then
    say "the run ended with status $status; see ~/functa.log on the workers. Output of gcloud:"
    tail -n 20 "$folder/told" >&2
  fi
}

halt() { # stops all workers, which save first. Without `call`, which ends when this script is signaled.
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${place[@]}" "${links[@]}" --worker=all \
    "--command=$worker stop" >/dev/null 2>&1 </dev/null || true
}

if [ -n "$dry" ]; then
  echo "# Creates the TPU $TPU_NAME if it does not exist, then polls its state until it is READY:"
  type="${type:-ACCELERATOR_TYPE}" version="${version:-RUNTIME_VERSION}"
  create
  call gcloud compute tpus tpu-vm describe "$TPU_NAME" "${place[@]}" '--format=value(state)'
  echo "# This tree is copied to all workers, and its environment is created:"
  call bash -c "$pack" "$root" "$folder"
  copy
  echo "# The run, and the output of worker 0:"
  on all "$worker run$command"
  on 0 "$worker follow"
  echo "# After a preemption, before the commands above are repeated:"
  call gcloud compute tpus queued-resources delete "$TPU_NAME" "${place[@]}" --force
  echo "# On Ctrl-C, SIGTERM or the failure of a worker:"
  on all "$worker stop"
  exit 0
fi

# The config is checked for the devices of the TPU before anything is created.
if [ -n "$type" ] && [ -z "${RUNTIME_VERSION:-}" ] && [ -n "$version" ]; then
  "$root/launch/environment.sh"
  "$root/.venv/bin/python" -P -m functa.cli plan --check "$root/configs/$name.py$options" "$type" \
    ${passed[@]+"${passed[@]}"} || exit
fi

# The files are packed once, so that a restart runs the same code.
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
    say "stopped; the same command resumes. The TPU $TPU_NAME and any request for it are kept"
    exit "$status"
  fi
  if [ "$status" = 0 ] || [ "$status" = 2 ]; then exit "$status"; fi
  if [ "$restart" = 0 ]; then exit "$status"; fi
  restart=$((restart - 1))
  say "restarting; $restart more restarts allowed"
  call sleep "$poll_seconds" || true
done
