#!/usr/bin/env bash
# Runs an experiment as a Slurm job: writes a batch script and submits it.
# Environment and processes only; what is computed is written in configs/.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=arguments.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/arguments.sh"

help() {
  cat <<END_OF_HELP
usage: launch/slurm.sh NAME[:OPTIONS] [--nodes=N] [--gpus-per-node=G] [--time=TIME] [--partition=NAME]
                       [--cpus-per-task=C] [--workdir=DIR] [--dry-run] [--config.KEY=VALUE ...]

Submits a job of one process a GPU, or one a node without --gpus-per-node. Each process writes to
DIR.logs/process-K.log. Two minutes before the job's time is over, and when it is preempted with notice,
the processes save and stop and the job goes back into the queue; it goes on from there until the run is
complete. The same command submitted after a failure resumes too.

  OPTIONS             words joined by commas: a latent shape (8x8x16), a lookup (nearest, bilinear),
                      a preset (tiny, two_core, one_gpu); the config's docstring tells which
  --nodes=N           default: 1
  --gpus-per-node=G   default: 0
  --time=TIME         of one turn in the queue, as Slurm writes it (4:00:00); default: the partition's
  --partition=NAME    default: Slurm's
  --cpus-per-task=C   cores of each process; default: whole nodes
  --workdir=DIR       a folder that all nodes share, or gs://...; default: runs/ and the experiment's name,
                      in the current directory
  --dry-run           prints the batch script
  --config.KEY=VALUE  changes a value of the config, such as --config.field.width=128

  launch/slurm.sh cifar10_spatial --nodes=4 --gpus-per-node=8 --time=8:00:00

This tree and its .venv must be where all nodes see them. sbatch itself reads SBATCH_ACCOUNT, SBATCH_QOS,
SBATCH_CONSTRAINT, ... from the environment.

environment variables
  FUNCTA_PYTHON       the Python to make .venv with; default: python3.12, python3.11 or python3
  FUNCTA_EXTRA        cuda or tpu: installs JAX for that accelerator too; default: cuda with GPUs

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
    --config.?*=*) passed+=("$argument") ;;
    *)
      refuse "unknown argument '$argument'; known are --nodes=N, --gpus-per-node=G, --time=TIME, \
--partition=NAME, --cpus-per-task=C, --workdir=DIR, --dry-run and --config.KEY=VALUE"
      ;;
  esac
done
[[ "$nodes" =~ ^[1-9][0-9]{0,4}$ ]] || refuse "--nodes=$nodes: want a number from 1"
[[ "$gpus" =~ ^[0-9]{1,3}$ ]] || refuse "--gpus-per-node=$gpus: want a number from 0"
[[ "$cores" =~ ^([1-9][0-9]{0,3})?$ ]] || refuse "--cpus-per-task=$cores: want a number from 1"
[[ "$limit" =~ ^([0-9]+(:[0-9]{2}){0,2}|[0-9]+-[0-9]{1,2}(:[0-9]{2}){0,2})?$ ]] ||
  refuse "--time=$limit: want MINUTES, H:MM:SS or DAYS-HOURS"
[[ "$partition" =~ ^[A-Za-z0-9_.,-]*$ ]] || refuse "--partition=$partition: want names of partitions"
[ -n "$dry" ] || command -v sbatch >/dev/null || refuse "sbatch is not there: this is no machine of a Slurm cluster"
case "$workdir" in
  *://*) logs="$PWD/runs/$(basename "$workdir").logs" ;;
  *)
    [ "${workdir:0:1}" = / ] || workdir="$PWD/$workdir"
    logs="${workdir%/}.logs"
    ;;
esac
case "$logs" in *[%\\]* | *$'\n'*) refuse "--workdir=$workdir: Slurm gives % and \\ in paths of logs a meaning" ;; esac

tasks=$((gpus > 0 ? gpus : 1))
python="$root/.venv/bin/python"
printf -v program ' %q' "$python" -P -m functa.main "--config=$root/configs/$name.py$options" \
  "--workdir=$workdir" ${passed[@]+"${passed[@]}"}
printf -v output '%q' "$logs/process-%t.log"

# With --exclusive and no binding every process may use all cores of its node.
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
# What functa.main ends with when it was told to stop and has saved.
export FUNCTA_STOPPED_STATUS=75
status=0
# The others end by themselves after a failure; what hangs is killed a minute after the first has ended.
srun --kill-on-bad-exit=0 --wait=60 --cpu-bind=none --open-mode=append${cores:+ --cpus-per-task=$cores} \\
  --output=$output \\
 $program || status=\$?
if [ "\$status" = 75 ]; then
  echo "stopped with everything saved; back into the queue"
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
# The path of the log as an argument: sbatch has rules of its own for quotes in #SBATCH lines.
sbatch "--output=$logs/job-%j.log" "$logs/job.sh"
echo "logs: $logs"
