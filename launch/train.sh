#!/usr/bin/env bash
# Train on the hosts of a hostfile or on this one, through failures. launch/train.sh --help
set -euo pipefail
source "$(dirname "$0")/env.sh"
exec python "$root/launch/supervise.py" "$@"
