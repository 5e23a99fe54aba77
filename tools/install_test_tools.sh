#!/bin/sh
# What the tests use and npm can't bring (Debian and Ubuntu, as root): a browser that opens the report and brings an
# emulated GPU (SwiftShader), another one (lavapipe) with the Vulkan loader that both are found by, a server for the queue,
# GNU parallel, shells that complete, and a Python with what dumps are compared with. Does nothing where all are there.
set -eu
packages=""
command -v chromium >/dev/null || packages="$packages chromium"
ls /usr/share/vulkan/icd.d/lvp_icd*.json >/dev/null 2>&1 || packages="$packages mesa-vulkan-drivers"
command -v redis-server >/dev/null || packages="$packages redis-server"
command -v parallel >/dev/null || packages="$packages parallel"
command -v zsh >/dev/null || packages="$packages zsh"
command -v fish >/dev/null || packages="$packages fish"
command -v python3 >/dev/null && python3 -m pip --version >/dev/null 2>&1 || packages="$packages python3 python3-pip"
if [ -n "$packages" ]; then
    apt-get update -q
    # shellcheck disable=SC2086 # names without blanks
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages
fi

# Ours alone: the machine is a test's. Older pips know nothing of the flag, and need none.
python_packages() {
    python3 -m pip install -q --break-system-packages "$@" || python3 -m pip install -q "$@"
}

python3 -c "import numpy, safetensors, gguf" 2>/dev/null || python_packages "numpy<3" "safetensors<1" "gguf<1"

# A transformers model, for docs/examples: 5 GB on disk. PyTorch as PyPI has it for Linux loads CUDA's libraries even
# where there is no GPU. Its compiler (triton, 1 GB) is needed by nothing here, so the dependencies are named one by one.
# Where they can't be had, that one test is skipped, and the suite's last lines say so.
# Looked for, not loaded: that takes seconds.
if ! python3 -c "from importlib.util import find_spec as f; exit(not (f('torch') and f('transformers')))"; then
    python_packages --no-deps "torch==2.15.0" &&
        python_packages "cuda-toolkit[cublas,cudart,cufft,cufile,cupti,cusolver,cusparse,nvjitlink,nvrtc]==13.2.2" \
            "nvidia-cudnn-cu13==9.26.0.51" "nvidia-cusparselt-cu13==0.8.1" "nvidia-nccl-cu13==2.30.7" \
            "nvidia-nvshmem-cu13==3.7.2" filelock fsspec jinja2 networkx sympy typing_extensions \
            "transformers==5.24.0" "numpy<3" "safetensors<1" "gguf<1" ||
        echo "tools/install_test_tools.sh: PyTorch and transformers could not be installed" >&2
fi
