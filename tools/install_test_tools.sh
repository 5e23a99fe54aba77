#!/bin/sh
# What the tests use and npm can't bring (Debian and Ubuntu, as root): a browser that opens the report (it brings an
# emulated GPU, SwiftShader), a server for the queue, and another emulated GPU, lavapipe. Does nothing where all are there.
set -eu
ls /usr/share/vulkan/icd.d/lvp_icd*.json >/dev/null 2>&1 && command -v chromium >/dev/null &&
  command -v redis-server >/dev/null && exit 0
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium redis-server mesa-vulkan-drivers
