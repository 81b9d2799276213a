#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster through XPK, which writes the JobSet (pip install xpk).
#
#   export CLUSTER=mine ZONE=us-west4-a PROJECT=mine IMAGE=...    # the image of the Dockerfile here
#   launch/recipes/xpk.sh my-run --config=configs/mdlm_owt.py --workdir=gs://bucket/mine
#
# and TYPE, SLICES (with --config.mesh.slices the same number). DRY_RUN=1 prints the command instead.
set -euo pipefail

: "${CLUSTER:?}" "${ZONE:?}" "${PROJECT:?}" "${IMAGE:?}"
workload=${1:?usage: $0 WORKLOAD FLAGS...}
shift

printf -v train ' %q' launch/train.py --multihost "$@"
command=(
  xpk workload create --workload="$workload"
  --cluster="$CLUSTER" --zone="$ZONE" --project="$PROJECT"
  --tpu-type="${TYPE:-v5litepod-256}" --num-slices="${SLICES:-1}"
  --docker-image="$IMAGE" --max-restarts=20
  --command="python$train"
)
if [[ -n ${DRY_RUN:-} ]]; then
  printf -v words '%q ' "${command[@]}"
  echo "${words% }"
else
  "${command[@]}"
fi
