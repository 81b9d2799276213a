#!/usr/bin/env bash
# Trains on a GPU cluster that is run by SLURM, with one process for each GPU.
#
#   sbatch --nodes=4 launch/recipes/slurm.sh --config=configs/mdlm_owt.py --workdir=/shared/mine
#
# from the root of the repository, on a disk that all nodes see, with .venv made by
# `uv pip install '.[cuda]'` (or PYTHON=...). JAX reads from SLURM who takes part. Five minutes
# before the time is over the run saves and ends, and the job queues again until it is done.
# DRY_RUN=1 bash launch/recipes/slurm.sh ... prints the command instead.

#SBATCH --job-name=mdm_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

# Not --gpus-per-task: it hides the other GPUs of a node from a process, which JAX numbers by
# SLURM_LOCALID.
set -euo pipefail

command=(srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" launch/train.py --multihost "$@")
if [[ -n ${DRY_RUN:-} ]]; then
  printf -v words '%q ' "${command[@]}"
  echo "${words% }"
  exit
fi

status=0
"${command[@]}" || status=$?
if ((status == 128 + 15)); then # SIGTERM, and the state is saved
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
