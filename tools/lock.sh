#!/bin/bash
# Write requirements.lock anew from pyproject.toml: exact versions with hashes, no host names.
#
#   tools/lock.sh             keeps the versions that still fit
#   tools/lock.sh --upgrade   takes the newest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
.venv/bin/python -m piptools --version >/dev/null 2>&1 || .venv/bin/pip install -q pip-tools
printf 'setuptools>=77\nwheel\n' >.work/build.in
# the versions of the file that is written are those that are kept
cp requirements.lock .work/requirements.new
.venv/bin/python -m piptools compile -q --generate-hashes --allow-unsafe --strip-extras \
    --extra dev --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header \
    --no-annotate --output-file .work/requirements.new "$@" pyproject.toml .work/build.in
{
    sed -n '/^#/!q;p' requirements.lock # what it is, at its head
    sed '/^#/d; /^$/d' .work/requirements.new
} >.work/requirements.lock
mv .work/requirements.lock requirements.lock
rm .work/requirements.new
