#!/usr/bin/env bash
# Train on the hosts of a hostfile or on this one, through failures. launch/train.sh --help
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
export PATH="$root/.venv/bin:$PATH" PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$root/.venv/torch_extensions}"
exec python "$root/launch/supervise.py" "$@"
