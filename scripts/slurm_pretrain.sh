#!/usr/bin/env bash
# Pre-training on several nodes under Slurm; goes on by itself after a time limit or a pre-emption: a signal lets the
# training write a checkpoint at its next update and end, and the job goes back into the queue.
#   sbatch --nodes 4 --gpus-per-node 8 scripts/slurm_pretrain.sh [more options of `monai.bundle run`]
# Submit from the repository's root. Set before submitting:
#   AFIRE_DATALIST  the data list (JSON)           AFIRE_OUTPUT  folder on a disk that all nodes share
#   AFIRE_VENV      the environment, default .venv in the repository; make it beforehand with scripts/environment.sh
#SBATCH --job-name=afire-pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
#SBATCH --output=%x-%j.log
set -euo pipefail

# Slurm runs a copy of this file from elsewhere, so its own path says nothing about the repository
cd "${SLURM_SUBMIT_DIR:?submit this file with sbatch}"
datalist="${AFIRE_DATALIST:?set AFIRE_DATALIST to the data list}"
output="${AFIRE_OUTPUT:?set AFIRE_OUTPUT to a folder that all nodes share}"
environment="${AFIRE_VENV:-$PWD/.venv}"
if [[ ! -f "$environment/bin/activate" ]]; then
    echo "$environment: no environment here; make it on a node with network: bash scripts/environment.sh" >&2
    exit 1
fi
# shellcheck disable=SC1091  # made by scripts/environment.sh
source "$environment/bin/activate"

hosts="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
head_node="${hosts%%$'\n'*}"
# a port derived from the job's number: two jobs that share a node do not meet
port=$((20000 + SLURM_JOB_ID % 20000))
gpus="$(nvidia-smi -L | wc -l)"
configs="['bundle/configs/pretrain.yaml','bundle/configs/method_afire.yaml','bundle/configs/multi_gpu.yaml']"

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
# waits for the first process go over gloo: where a host's name does not lead to an address that the other nodes reach,
# name the interface before submitting: export GLOO_SOCKET_IFNAME=ib0
# a new store of addresses at every restart: with one for all, restarted processes wait for lost ones
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# seconds that torchrun leaves the training for its checkpoint before it kills; the signal comes 180 before the limit
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-150}"
srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" \
    --nproc_per_node "${SLURM_GPUS_ON_NODE:-$gpus}" \
    --rdzv_id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    --max-restarts "${AFIRE_RESTARTS:-3}" \
    --rdzv_backend c10d \
    --rdzv_endpoint "$head_node:$port" \
    -m monai.bundle run \
    --config_file "$configs" \
    --datalist "$datalist" \
    --output_dir "$output" \
    --resume true \
    "$@" &
step=$!

asked=0
ask_to_stop() {
    asked=1
    kill -TERM "$step" 2>/dev/null || true
}
trap ask_to_stop USR1 TERM
# a signal cuts a wait short, so it is asked again until the training has ended
while kill -0 "$step" 2>/dev/null; do
    wait "$step" || true
done
status=0
wait "$step" || status=$?
# 75: the training itself says that it was asked to stop; torchrun gives a status of its own
if ((status == 75 || (asked && status != 0))); then
    echo "stopped with a checkpoint: back into the queue, to resume from it"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
