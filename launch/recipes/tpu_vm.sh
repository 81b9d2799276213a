#!/usr/bin/env bash
# Trains on Cloud TPU VMs: one slice, or SLICES of them as a queued resource.
#
#   export TPU=mine ZONE=us-west4-a                       # and PROJECT, TYPE, SLICES, RUNTIME
#   launch/recipes/tpu_vm.sh create
#   launch/recipes/tpu_vm.sh setup                        # again after each commit
#   launch/recipes/tpu_vm.sh train --config=configs/mdlm_owt.py --workdir=gs://bucket/mine
#   launch/recipes/tpu_vm.sh log                          # of the first host
#   launch/recipes/tpu_vm.sh stop                         # it saves; the same `train` continues
#   launch/recipes/tpu_vm.sh delete
#
# With SLICES=4 give `train` --config.mesh.slices=4 too. DRY_RUN=1 prints the commands instead.
set -euo pipefail

: "${TPU:?name of the TPU}" "${ZONE:?such as us-west4-a}"
TYPE=${TYPE:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite} # goes with TYPE: v2-alpha-tpuv5 for v5p, v2-alpha-tpuv6e
SLICES=${SLICES:-1}
where=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"})

if ((SLICES == 1)); then
  kind=tpu-vm
  make=(--version="$RUNTIME")
  everywhere=(--worker=all)
  first=(--worker=0)
else
  kind=queued-resources
  make=(--runtime-version="$RUNTIME" --node-count="$SLICES" --node-prefix="$TPU")
  everywhere=(--node=all --worker=all)
  first=(--node=0 --worker=0)
fi

run() {
  if [[ -n ${DRY_RUN:-} ]]; then
    local words
    printf -v words '%q ' "$@"
    echo "${words% }"
  else
    "$@"
  fi
}

on() { # on COMMAND WHERE...: runs it on those hosts
  local command=$1
  shift
  run gcloud compute tpus "$kind" ssh "$TPU" "${where[@]}" "$@" --command="$command"
}

action=${1:-}
shift || true
case $action in
  create)
    run gcloud compute tpus "$kind" create "$TPU" "${where[@]}" \
      --accelerator-type="$TYPE" "${make[@]}"
    ;;
  setup) # what is committed, and a Python of its own: the one of the image may be too old
    run git archive --format=tar.gz --output=mdm_jax.tar.gz HEAD
    run gcloud compute tpus "$kind" scp mdm_jax.tar.gz "$TPU": "${where[@]}" "${everywhere[@]}"
    unpack="mkdir -p mdm_jax && tar -xzf mdm_jax.tar.gz -C mdm_jax && cd mdm_jax"
    get_uv="pip install -q --user uv && PATH=\$HOME/.local/bin:\$PATH"
    install="uv venv --allow-existing --python 3.12 .venv && uv pip install -q '.[tpu,gcs]'"
    on "$unpack && $get_uv && $install" "${everywhere[@]}"
    ;;
  train) # in the background, so that it outlives the connection
    printf -v words ' %q' launch/train.py --multihost "$@"
    start="nohup .venv/bin/python$words >> train.log 2>&1 < /dev/null & echo \$! > train.pid"
    on "cd mdm_jax && { $start; }" "${everywhere[@]}"
    ;;
  log) on "tail -n 50 -f mdm_jax/train.log" "${first[@]}" ;;
  stop) on "kill -TERM \$(cat mdm_jax/train.pid)" "${everywhere[@]}" ;;
  delete) run gcloud compute tpus "$kind" delete "$TPU" "${where[@]}" ;;
  *)
    echo "usage: $0 create|setup|train FLAGS...|log|stop|delete" >&2
    exit 2
    ;;
esac
