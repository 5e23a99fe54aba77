#!/bin/sh
# What the tests use and npm can't bring (Debian and Ubuntu, as root): a browser that opens the report and keeps
# snapshots, a server for the queue and for snapshots, and one that speaks S3 (PyPI's moto, in a folder of its own).
# Does nothing where they are there.
set -eu
tools="$HOME/.cache/palisade-test-tools"
has_moto() { "$1" -c 'import moto.server, moto.s3, flask, flask_cors' 2>/dev/null; }
moto=no
if has_moto python3 || has_moto "$tools/bin/python"; then moto=yes; fi
command -v chromium >/dev/null && command -v redis-server >/dev/null && [ $moto = yes ] && exit 0
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium redis-server python3-venv
[ $moto = yes ] && exit 0
python3 -m venv "$tools"
# As in tests/_helper/s3.ts.
"$tools/bin/python" -m pip install -q 'moto[s3]==5.2.5' flask==3.1.3 flask-cors==6.0.5
