#!/bin/sh
# What the tests use and npm can't bring (Debian and Ubuntu, as root): a browser that opens the report, and a server for
# the queue. Does nothing where both are there.
set -eu
command -v chromium >/dev/null && command -v redis-server >/dev/null && exit 0
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium redis-server
