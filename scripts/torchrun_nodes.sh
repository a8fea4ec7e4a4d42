#!/usr/bin/env bash
# Trains on several nodes with torchrun: the same line on each of them, in any order.
#
#   NODES=2 GPUS=8 ENDPOINT=node0:29400 scripts/torchrun_nodes.sh config/full_qwen3_2.0b.py --use_fsdp=True --out_dir=/shared/out
#
# A rank that dies takes the others with it, and all start again from the newest intact checkpoint, RESTARTS times. out_dir has
# to lie on a file system that all nodes share.
set -euo pipefail

: "${NODES:?the number of nodes}" "${ENDPOINT:?HOST:PORT of one of the nodes}"
[ $# -gt 0 ] || { echo "usage: NODES=N GPUS=N ENDPOINT=HOST:PORT scripts/torchrun_nodes.sh CONFIG [--key=value ...]" >&2; exit 2; }
cd "$(dirname "$0")/.."
# Ctrl-C and a scheduler's signals go on to the ranks (USR1 too, from torch 2.13 on), which then have five minutes to save
export PET_SIGNALS_TO_HANDLE=${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}
# A new store for every restart: torchrun's shared one keeps the addresses of ranks that are dead
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec "${TORCHRUN:-torchrun}" --nnodes="$NODES" --nproc_per_node="${GPUS:-gpu}" --max_restarts="${RESTARTS:-3}" \
    --rdzv_backend=c10d --rdzv_endpoint="$ENDPOINT" --rdzv_id="${RUN_ID:-train}" train.py "$@"
