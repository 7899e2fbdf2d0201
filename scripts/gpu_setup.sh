#!/usr/bin/env bash
# Sets a Hopper machine up for scripts/gpu_ci.sh: a virtual environment, Transformer Engine included.
#
#     scripts/gpu_setup.sh [--dry-run] [--no-te] [VENV]        VENV is .venv unless it is given
#
# Needs Python 3.12 (PYTHON names it), a driver for CUDA 13 and its toolkit: CUDA_HOME with nvcc, 13.0 was used.
# Building Transformer Engine's torch extension took 11 CPU minutes and up to 7 GB of disk in all. Afterwards
# nothing needs a network. docs/gpu.md says what of this was never run where a GPU is.
set -euo pipefail

torch=2.11.0
torch_index=https://download.pytorch.org/whl/cu130
te='transformer-engine[pytorch,core-cu13]==2.20.2'
jobs=${MAX_JOBS:-$(nproc)}

dry=false with_te=true
while [[ ${1:-} == --* ]]; do
    case $1 in
    --dry-run) dry=true ;;
    --no-te) with_te=false ;;
    *)
        sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
    esac
    shift
done
venv=$(realpath -m "${1:-.venv}")
root=$(cd "$(dirname "$0")/.." && pwd)

run() {
    printf '+ %s\n' "$*"
    $dry || "$@"
}

if $with_te && ! $dry && [[ ! -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]]; then
    echo "error: no nvcc in ${CUDA_HOME:-/usr/local/cuda}; set CUDA_HOME, or leave Transformer Engine out: --no-te" >&2
    exit 2
fi
run "${PYTHON:-python3.12}" -m venv "$venv"
pip=("$venv/bin/python" -m pip install)
run "${pip[@]}" "torch==$torch" --index-url "$torch_index" # brings triton 3.6.0
run "${pip[@]}" -e "$root" 'pytest>=8' 'hypothesis>=6.100' 'transformers>=5.0'

if $with_te; then
    # cuBLAS, cuSPARSE, cuDNN and NCCL have their headers in torch's own packages, and a toolkit may lack them.
    # With TE's switch for such packages (NVTE_BUILD_USE_NVIDIA_WHEELS) nvcc misses its crt/host_config.h.
    includes=$(echo "$venv"/lib/python*/site-packages/nvidia/*/include | tr ' ' ':')
    run "${pip[@]}" ninja pybind11 wheel packaging setuptools
    # The extension is built against the torch that is there, and not looked for on GitHub first.
    run env CUDA_HOME="${CUDA_HOME:-/usr/local/cuda}" MAX_JOBS="$jobs" NVTE_PYTORCH_FORCE_BUILD=TRUE \
        CPLUS_INCLUDE_PATH="$includes${CPLUS_INCLUDE_PATH:+:$CPLUS_INCLUDE_PATH}" \
        "${pip[@]}" --no-build-isolation "$te"
fi

run env PYTHONPATH="$root:$root/kernels" "$venv/bin/python" "$root/scripts/gpu_checks.py" environment --need-hopper
