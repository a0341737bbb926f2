#!/bin/bash
# Make a fresh clone ready: Debian packages, virtual environment, locked dependencies, the agent.
#
#   tools/setup.sh            to run reloader
#   tools/setup.sh --demo     the demo, its OCaml part too if you are root
#   tools/setup.sh --tests    what the tests need as well
#
# Does only what is missing, so it costs a moment when nothing is. Installs Debian packages only as
# root; otherwise it prints the line to type and ends with status 1. On other systems it
# looks for the same commands and leaves installing to you.
set -euo pipefail
export LC_ALL=C

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
cd "$root"

die() {
    printf 'tools/setup.sh: %s\n' "$*" >&2
    exit 1
}

case "${1:-}" in
"") wanted="base" ;;
--demo) wanted="base"; [ "$(id -u)" != 0 ] || wanted="base ocaml" ;;
--tests) wanted="base ocaml tests" ;;
*) die "usage: tools/setup.sh [--demo | --tests]" ;;
esac
[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] || die "reloader runs on Linux x86-64; this is $(uname -sm)"

# The first Python that is new enough; one that can make virtual environments already comes before
# others. Debian's own is tried first: it is built with profiles, a fifth quicker than a plain build.
find_python() {
    local name needs
    for needs in ensurepip sys; do
        for name in ${PYTHON:-} /usr/bin/python3 python3.11 python3 python3.12 python3.13; do
            if "$name" -c "import sys, $needs; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then
                command -v "$name"
                return
            fi
        done
    done
    return 1
}

is_there() {
    case $1 in
    python3-venv) "$python" -c 'import ensurepip, venv' 2>/dev/null ;;
    gcc | g++ | clang | gdb | make | patch | perl | pkg-config) command -v "$1" >/dev/null ;;
    binutils) command -v as ld objcopy >/dev/null ;;
    *) dpkg-query -W -f '${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed ;;
    esac
}

install_packages() {
    local line="apt-get install -y $*"
    if [ "$(id -u)" != 0 ]; then
        die "missing Debian packages; run: sudo $line"
    fi
    printf 'tools/setup.sh: %s\n' "$line"
    export DEBIAN_FRONTEND=noninteractive
    # lists may be absent (a fresh container) or older than the mirror's files: update, once
    if ! apt-cache show "$@" >/dev/null 2>&1 ||
        ! apt-get install -y -q --no-install-recommends "$@" </dev/null >/dev/null 2>&1; then
        apt-get update -q >/dev/null
        apt-get install -y -q --no-install-recommends "$@" </dev/null
    fi
}

need_packages() {
    local missing=() who name
    while read -r who name _; do
        [[ " $wanted " == *" $who "* ]] || continue
        is_there "$name" || missing+=("$name")
    done <tools/debian-packages.txt
    [ ${#missing[@]} = 0 ] && return
    command -v apt-get >/dev/null || die "missing: ${missing[*]} (Debian's names; install what your system calls them)"
    install_packages "${missing[@]}"
}

# Stamped with what it was made for and from: another Python or a moved folder makes it anew, a
# changed lock file brings it up to date.
need_venv() {
    local for from pip=("$venv/bin/python" -m pip install -q --disable-pip-version-check)
    for="$("$python" -V) $root"
    from=$(sha256sum requirements.lock pyproject.toml setup.py | sha256sum)
    [ "$(cat "$venv/.made" 2>/dev/null)" = "$for $from" ] && return
    printf 'tools/setup.sh: installing the locked dependencies into .venv\n'
    if [ -e "$venv/.made" ] && [[ "$(cat "$venv/.made")" != "$for "* ]]; then rm -rf "$venv"; fi
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    quietly "${pip[@]}" --require-hashes -r requirements.lock
    # the build tools are among the locked ones: nothing else is downloaded
    quietly "${pip[@]}" --no-deps --no-build-isolation -e .
    printf '%s\n' "$for $from" >"$venv/.made"
}

# What a command prints is shown only if it fails.
quietly() {
    "$@" >.work/setup.log 2>&1 || {
        cat .work/setup.log >&2
        die "failed: $*"
    }
}

python=$(find_python) || {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || die "Python 3.11 or newer is missing; run: sudo apt-get install -y python3 python3-venv"
    install_packages python3 python3-venv
    python=$(find_python) || die "Python 3.11 or newer is needed; this system's python3 is older"
}
need_packages
mkdir -p .work
if [[ " $wanted " == *" tests "* ]]; then
    tools/ocaml53.sh & # mostly waits for the network: beside the rest
    ocaml53=$!
fi
exec 9>.work/setup.lock # two makes at a time in one clone
if command -v flock >/dev/null; then flock 9; fi
need_venv
"$venv/bin/python" -m stubs.build
[ -z "${ocaml53:-}" ] || wait "$ocaml53"
