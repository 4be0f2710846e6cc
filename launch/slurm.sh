#!/usr/bin/env bash
# Runs an experiment as a Slurm job: writes a batch script and submits it.
# Sets up environment and processes only; configs/ defines the computation.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=arguments.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/arguments.sh"

help() {
  cat <<END_OF_HELP
usage: launch/slurm.sh NAME[:OPTIONS] [--nodes=N] [--gpus-per-node=G] [--time=TIME] [--partition=NAME]
                       [--cpus-per-task=C] [--workdir=DIR] [--dry-run] [--env=KEY=VALUE ...]
                       [--config.KEY=VALUE ...]

Submits a job with one process per GPU, or one per node without --gpus-per-node. Each process writes
DIR.logs/process-K.log. Two minutes before the time limit, and at a preemption with notice, the
processes save and stop, and the job is requeued until the run is complete. After a failure, the same
command resumes the run.

  OPTIONS             words joined by commas: a latent shape (8x8x16), an interpolation (nearest,
                      bilinear), a preset (tiny, two_core, one_gpu); the config's docstring lists them
  --nodes=N           default: 1
  --gpus-per-node=G   default: 0
  --time=TIME         time limit of the job in Slurm's format (4:00:00); default: the partition's
  --partition=NAME    default: Slurm's
  --cpus-per-task=C   cores per process; default: whole nodes
  --workdir=DIR       a folder shared by all nodes, or gs://...; default: runs/ and the experiment's
                      name, in the current directory
  --dry-run           prints the batch script
  --env=KEY=VALUE     sets an environment variable of all processes, such as XLA_FLAGS
  --config.KEY=VALUE  sets a value of the config, such as --config.field.width=128

  launch/slurm.sh cifar10_spatial --nodes=4 --gpus-per-node=8 --time=8:00:00

All nodes must see this folder and its .venv. sbatch reads SBATCH_ACCOUNT, SBATCH_QOS,
SBATCH_CONSTRAINT, ... from the environment.

environment variables
  FUNCTA_PYTHON       the Python that creates .venv; default: python3.12, python3.11 or python3
  FUNCTA_EXTRA        cuda (cuda12, cuda13) or tpu: installs JAX for this accelerator;
                      default: cuda with GPUs

configs
$(configs)
END_OF_HELP
}

read_experiment "$@"
shift
nodes=1
gpus=0
cores=''
limit=''
partition=''
dry=''
workdir="$local_workdir"
passed=()
for argument in "$@"; do
  case "$argument" in
    --nodes=*) nodes="${argument#*=}" ;;
    --gpus-per-node=*) gpus="${argument#*=}" ;;
    --cpus-per-task=*) cores="${argument#*=}" ;;
    --time=*) limit="${argument#*=}" ;;
    --partition=*) partition="${argument#*=}" ;;
    --workdir=?*) workdir="${argument#*=}" ;;
    --dry-run) dry=1 ;;
    --env=*) add_variable "$argument" ;;
    --config.?*=*) passed+=("$argument") ;;
    *)
      refuse "unknown argument '$argument'; known are --nodes=N, --gpus-per-node=G, --time=TIME, \
--partition=NAME, --cpus-per-task=C, --workdir=DIR, --dry-run, --env=KEY=VALUE and --config.KEY=VALUE"
      ;;
  esac
done
[[ "$nodes" =~ ^[1-9][0-9]{0,4}$ ]] || refuse "--nodes=$nodes: want a number from 1"
[[ "$gpus" =~ ^[0-9]{1,3}$ ]] || refuse "--gpus-per-node=$gpus: want a number from 0"
[[ "$cores" =~ ^([1-9][0-9]{0,3})?$ ]] || refuse "--cpus-per-task=$cores: want a number from 1"
[[ "$limit" =~ ^([0-9]+(:[0-9]{2}){0,2}|[0-9]+-[0-9]{1,2}(:[0-9]{2}){0,2})?$ ]] ||
  refuse "--time=$limit: want MINUTES, H:MM:SS or DAYS-HOURS"
[[ "$partition" =~ ^[A-Za-z0-9_.,-]*$ ]] || refuse "--partition=$partition: want names of partitions"
[ -n "$dry" ] || command -v sbatch >/dev/null || refuse "sbatch is not installed; run this on a Slurm cluster"
case "$workdir" in
  *://*) logs="$PWD/runs/$(basename "$workdir").logs" ;;
  *)
    [ "${workdir:0:1}" = / ] || workdir="$PWD/$workdir"
    logs="${workdir%/}.logs"
    ;;
esac
case "$logs" in *[%\\]* | *$'\n'*) refuse "--workdir=$workdir: % and \\ have a special meaning in Slurm's log paths" ;; esac

tasks=$((gpus > 0 ? gpus : 1))
python="$root/.venv/bin/python"
printf -v program ' %q' "$python" -P -m functa.main "--config=$root/configs/$name.py$options" \
  "--workdir=$workdir" ${passed[@]+"${passed[@]}"}
printf -v output '%q' "$logs/process-%t.log"

# With --exclusive and no CPU binding each process can use all cores of its node.
script() {
  cat <<END_OF_SCRIPT
#!/usr/bin/env bash
#SBATCH --job-name=functa-$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$tasks
END_OF_SCRIPT
  [ "$gpus" = 0 ] || echo "#SBATCH --gpus-per-node=$gpus"
  if [ -n "$cores" ]; then echo "#SBATCH --cpus-per-task=$cores"; else echo "#SBATCH --exclusive"; fi
  [ -z "$limit" ] || echo "#SBATCH --time=$limit"
  [ -z "$partition" ] || echo "#SBATCH --partition=$partition"
  cat <<END_OF_SCRIPT
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
export PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL="\${TF_CPP_MIN_LOG_LEVEL:-2}"
# Exit status of functa.main after it was stopped and saved its state.
export FUNCTA_STOPPED_STATUS=75
END_OF_SCRIPT
  # Without JAX_PLATFORMS, JAX would fall back to the CPU.
  # shellcheck disable=SC2016 # expanded by the job
  [ "$gpus" = 0 ] || echo 'export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}"'
  [ "${#variables[@]}" = 0 ] || printf 'export %q\n' "${variables[@]}"
  cat <<END_OF_SCRIPT
status=0
# After a failure the other processes end; those that hang are killed after a minute.
srun --kill-on-bad-exit=0 --wait=60 --cpu-bind=none --open-mode=append${cores:+ --cpus-per-task=$cores} \\
  --output=$output \\
 $program || status=\$?
if [ "\$status" = 75 ]; then
  echo "stopped with its state saved; requeueing"
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$status"
END_OF_SCRIPT
}

if [ -n "$dry" ]; then
  script
  exit 0
fi
extra="${FUNCTA_EXTRA:-}"
[ "$gpus" = 0 ] || extra="${extra:-cuda}"
"$root/launch/environment.sh" "$extra"
mkdir -p "$logs"
script >"$logs/job.sh"
# The log path is an argument because sbatch parses quotes in #SBATCH lines differently from bash.
sbatch "--output=$logs/job-%j.log" "$logs/job.sh"
echo "logs: $logs"
