#!/usr/bin/env bash
# Prints the Kubernetes manifest of an experiment: a JobSet for TPU or GPU nodes of GKE.
# Environment and processes only; what is computed is written in configs/.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=arguments.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/arguments.sh"

help() {
  cat <<END_OF_HELP
usage: launch/gke_jobset.sh NAME[:OPTIONS] --image=IMAGE --workdir=gs://BUCKET/FOLDER
                            (--tpu=TYPE:TOPOLOGY [--nodes=N] | --gpus-per-node=G [--nodes=N])
                            [--gpu-type=TYPE] [--spot] [--restart=K] [--service-account=NAME]
                            [--name=NAME] [--config.KEY=VALUE ...]

Prints a JobSet of one pod a node; pipe it to "kubectl apply -f -". A pod that fails or is taken away ends
the others, and all are started again, up to K times; what the command or the config must mend first
(exit status 2) is not tried again. IMAGE holds this tree in /functa and a python with its requirements
(docs/SCALE.md has a Dockerfile). The cluster needs the JobSet controller, 0.6 or newer.

  OPTIONS             words joined by commas: a latent shape (8x8x16), a lookup (nearest, bilinear),
                      a preset (tiny, two_core, one_gpu); the config's docstring tells which
  --tpu=TYPE:TOPOLOGY a slice, as GKE's node labels name it: tpu-v6e-slice:4x4
  --gpus-per-node=G   NVIDIA GPUs of each node
  --nodes=N           default: with GPUs 1; with a TPU what the topology needs, 4 chips a node
                      (for v5e and v6e up to 8 chips: 1)
  --gpu-type=TYPE     as GKE's node label names it: nvidia-h100-80gb
  --spot              nodes that may be taken away and cost less
  --restart=K         default: 20
  --service-account=NAME   of Kubernetes, one that may write to the bucket; default: the namespace's own
  --name=NAME         of the JobSet; default: functa- and the experiment's name
  --config.KEY=VALUE  changes a value of the config, such as --config.field.width=128

  launch/gke_jobset.sh cifar10_spatial --image=us-docker.pkg.dev/my-project/my/functa:1 \\
    --workdir=gs://my-bucket/cifar10 --tpu=tpu-v6e-slice:4x4 | kubectl apply -f -

configs
$(configs)
END_OF_HELP
}

read_experiment "$@"
shift
image='' workdir='' tpu='' nodes='' gpus='' gpu_type='' spot='' restart=20 account=''
jobset="functa-$experiment"
jobset="${jobset,,}"
jobset="${jobset//[^a-z0-9]/-}"
passed=()
for argument in "$@"; do
  value="${argument#*=}"
  case "$argument" in
    --image=?*) image="$value" ;;
    --workdir=?*) workdir="$value" ;;
    --tpu=?*) tpu="$value" ;;
    --nodes=*) nodes="$value" ;;
    --gpus-per-node=*) gpus="$value" ;;
    --gpu-type=?*) gpu_type="$value" ;;
    --spot) spot=1 ;;
    --restart=*) restart="$value" ;;
    --service-account=?*) account="$value" ;;
    --name=?*) jobset="$value" ;;
    --config.?*=*) passed+=("$argument") ;;
    *)
      refuse "unknown argument '$argument'; known are --image=IMAGE, --workdir=gs://BUCKET/FOLDER, \
--tpu=TYPE:TOPOLOGY, --gpus-per-node=G, --nodes=N, --gpu-type=TYPE, --spot, --restart=K, \
--service-account=NAME, --name=NAME and --config.KEY=VALUE"
      ;;
  esac
done

# All of it at once.
wrong=()
want() { wrong+=("$1"); }
[ -n "$image" ] || want "--image=IMAGE is needed"
[[ "$workdir" =~ ^gs://[^/]+/.+ ]] ||
  want "--workdir=$workdir: want gs://BUCKET/FOLDER, a place that all pods share and that outlives them"
[[ "$nodes" =~ ^([1-9][0-9]{0,4})?$ ]] || want "--nodes=$nodes: want a number from 1"
[[ "$restart" =~ ^[0-9]{1,6}$ ]] || want "--restart=$restart: want a number from 0"
if [ -n "$tpu" ] && [ -n "$gpus" ]; then want "--tpu and --gpus-per-node: want one of them"; fi
if [ -z "$tpu" ] && [ -z "$gpus" ]; then want "want --tpu=TYPE:TOPOLOGY or --gpus-per-node=G"; fi
[[ -z "$gpus" || "$gpus" =~ ^[1-9][0-9]?$ ]] || want "--gpus-per-node=$gpus: want a number from 1"
[ -z "$gpu_type" ] || [ -n "$gpus" ] || want "--gpu-type=$gpu_type goes with --gpus-per-node=G"
[[ -z "$tpu" || "$tpu" =~ ^[a-z0-9-]+:[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
  want "--tpu=$tpu: want TYPE:TOPOLOGY, such as tpu-v6e-slice:4x4 or tpu-v5p-slice:2x2x4"
for label in "$gpu_type" "$account"; do
  [[ "$label" =~ ^[a-z0-9.-]*$ ]] || want "'$label' is no name in Kubernetes"
done
# Kubernetes allows 63 letters for a pod's name: this one, -worker-0-, the pod's number and 6 more.
[[ "$jobset" =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
  want "--name=$jobset: want at most 40 of a-z, 0-9 and -, a letter first"
chips=0
if [ "${#wrong[@]}" = 0 ] && [ -n "$tpu" ]; then
  topology="${tpu#*:}"
  total=$((${topology//x/*}))
  if [ -z "$nodes" ]; then
    nodes=$(((total + 3) / 4))
    case "$tpu" in *v5-lite* | *v6e*) [ "$total" -gt 8 ] || nodes=1 ;; esac
  fi
  chips=$((total / nodes))
  [ $((chips * nodes)) = "$total" ] ||
    want "--tpu=$tpu has $total chips, which --nodes=$nodes does not divide"
fi
if [ "${#wrong[@]}" != 0 ]; then
  refuse "$(printf '%s\n' "${wrong[@]}")"
fi
nodes="${nodes:-1}"

quoted() { # TEXT: as a YAML string, which in double quotes is one of JSON
  local text="$1"
  text="${text//\\/\\\\}"
  text="${text//\"/\\\"}"
  text="${text//$'\n'/\\n}"
  text="${text//$'\t'/\\t}"
  # $(NAME) in a pod's command is a variable; $$ is a dollar.
  [ "${2:-}" != command ] || text="${text//\$/\$\$}"
  printf '"%s"' "$text"
}

# The pods of a TPU slice find each other by what GKE tells them (TPU_WORKER_HOSTNAMES, TPU_WORKER_ID).
gpu_variables() {
  cat <<END_OF_YAML
                    - name: JAX_COORDINATOR_ADDRESS
                      value: "$jobset-worker-0-0.$jobset:8476"
                    - name: JAX_NUM_PROCESSES
                      value: "$nodes"
                    - name: JAX_PROCESS_ID
                      valueFrom:
                        fieldRef:
                          fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
END_OF_YAML
}

selectors() {
  if [ -n "$tpu" ]; then
    echo "                cloud.google.com/gke-tpu-accelerator: $(quoted "${tpu%%:*}")"
    echo "                cloud.google.com/gke-tpu-topology: $(quoted "$topology")"
  fi
  [ -z "$gpu_type" ] || echo "                cloud.google.com/gke-accelerator: $(quoted "$gpu_type")"
  [ -z "$spot" ] || echo '                cloud.google.com/gke-spot: "true"'
}

resource=nvidia.com/gpu amount="$gpus"
if [ -n "$tpu" ]; then resource=google.com/tpu amount="$chips"; fi

cat <<END_OF_YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: "$jobset"
END_OF_YAML
[ -z "$tpu" ] || cat <<END_OF_YAML
  annotations:
    # All pods on the nodes of one slice.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
END_OF_YAML
cat <<END_OF_YAML
spec:
  network:
    enableDNSHostnames: true
    publishNotReadyAddresses: true
  failurePolicy:
    maxRestarts: $restart
    rules:
      # An exit status of 2: something must be mended first.
      - name: mend
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: worker
      replicas: 1
      template:
        spec:
          completionMode: Indexed
          completions: $nodes
          parallelism: $nodes
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: functa
                  operator: In
                  values: [2]
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120
END_OF_YAML
[ -z "$account" ] || echo "              serviceAccountName: $(quoted "$account")"
if [ -n "$(selectors)" ]; then
  echo "              nodeSelector:"
  selectors
fi
[ -z "$spot" ] || cat <<END_OF_YAML
              tolerations:
                - {key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}
END_OF_YAML
cat <<END_OF_YAML
              containers:
                - name: functa
                  image: $(quoted "$image")
                  workingDir: /functa
                  command:
END_OF_YAML
for argument in python -m functa.main "--config=configs/$name.py${experiment#"$name"}" "--workdir=$workdir" \
  ${passed[@]+"${passed[@]}"}; do
  echo "                    - $(quoted "$argument" command)"
done
cat <<END_OF_YAML
                  env:
                    - name: PYTHONUNBUFFERED
                      value: "1"
                    - name: TF_CPP_MIN_LOG_LEVEL
                      value: "2"
                    # A pod that was told to stop has saved, but not completed the run: it counts as failed.
                    - name: FUNCTA_STOPPED_STATUS
                      value: "75"
END_OF_YAML
[ -z "$gpus" ] || gpu_variables
cat <<END_OF_YAML
                  resources:
                    limits:
                      $resource: $amount
                  volumeMounts:
                    - {name: shm, mountPath: /dev/shm}
              volumes:
                # A container's own 64 MiB are too few for NCCL and for loaders.
                - {name: shm, emptyDir: {medium: Memory}}
END_OF_YAML
