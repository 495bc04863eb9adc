# Environment of every launch; sourced by train.sh, train.slurm and data_prep.slurm, or by hand before `deepspeed`:
#   source launch/env.sh        in bash or zsh, from any folder, as often as you like
# What is set already wins. Slurm's srun carries all of it to every node. The deepspeed launcher carries PYTHON*, and on
# GPUs NCCL*, LD_LIBRARY* and PATH*; launch/train.sh carries the others listed in launch/cluster/environment.py. For a bare
# `deepspeed --hostfile` put them into ~/.deepspeed_env, as launch/deepspeed_env.example does. What it is given passes the
# shells of the other hosts once more, where $, backticks, quotes, ; and the like are code, or empty a value in silence, and a
# path with a space is two words; launch/train.sh quotes arguments and values so that they arrive as they were typed.
root="${BASH_SOURCE[0]:-${(%):-%x}}"  # this file: of bash, of zsh
root="$(CDPATH= cd -- "$(dirname -- "$root")/.." >/dev/null && pwd)"
# One name for what is a link: by another one ops are compiled again. A link to nothing is told below.
venv="$(readlink -f -- "$root/.venv")" || venv="$root/.venv"
if [ ! -x "$venv/bin/python" ] && ! command -v deepspeed >/dev/null; then
    echo "error: there is no environment in $root/.venv and no deepspeed on PATH; run \`make install\` in $root, or activate" \
        "the environment that has the recipe's packages, then source launch/env.sh again" >&2
    return 2
fi
# Without .venv the environment is the one that is active (such as a container's), with torch's own folders.
if [ -x "$venv/bin/python" ]; then
    case "$PATH:" in "$venv/bin:"*) ;; *) export PATH="$venv/bin:$PATH" ;; esac
    # Compiled ops and kernels: with the environment, on the file system that all hosts see.
    export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$venv/torch_extensions}"
    export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$venv/triton}"
fi
case "${PYTHONPATH:-}:" in "$root:"*) ;; *) export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" ;; esac

# compute.compile: each rank starts so many compilers for a few small functions; by default a host's ranks start 32 each.
export TORCHINDUCTOR_COMPILE_THREADS="${TORCHINDUCTOR_COMPILE_THREADS:-4}"

# Segments that grow: micro-batches whose experts get different numbers of tokens otherwise fragment the GPU's memory.
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"

# NCCL finds NVLink and InfiniBand by itself. Set NCCL_SOCKET_IFNAME (and GLOO_SOCKET_IFNAME) where the hosts' names
# resolve to a network that is not between all of them, NCCL_IB_HCA where some ports must be left out.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
