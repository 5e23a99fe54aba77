#!/bin/sh
# Chromium for the tests that open pages in a browser (Debian and Ubuntu).
set -eu
apt-get update -q && apt-get install -y -q chromium
