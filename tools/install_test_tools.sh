#!/bin/sh
# What the tests use and npm can't bring (Debian and Ubuntu, as root): a browser that opens the report, a server for the
# queue, GNU parallel, and a Python with what dumps are compared with. Does nothing where all are there.
set -eu
packages=""
command -v chromium >/dev/null || packages="$packages chromium"
command -v redis-server >/dev/null || packages="$packages redis-server"
command -v parallel >/dev/null || packages="$packages parallel"
command -v python3 >/dev/null && python3 -m pip --version >/dev/null 2>&1 || packages="$packages python3 python3-pip"
if [ -n "$packages" ]; then
    apt-get update -q
    # shellcheck disable=SC2086 # names without blanks
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages
fi
python3 -c "import numpy, safetensors, gguf" 2>/dev/null && exit 0
# Ours alone: the machine is a test's. Older pips know nothing of the flag, and need none.
python3 -m pip install -q --break-system-packages "numpy<3" "safetensors<1" "gguf<1" ||
    python3 -m pip install -q "numpy<3" "safetensors<1" "gguf<1"
