#!/bin/bash
# Fetch the Debian sources of real programs, patched as Debian builds them, for tests and benchmarks.
#
#   tools/sources.sh NAME...      prints one unpacked tree a name: .work/sources/NAME
#
# Works without root and changes nothing of the machine's apt: the lists, the cache and the source
# entries are private to .work/apt. The entries are this machine's own with `deb` read as `deb-src`,
# so mirrors, keys and proxies are whatever already works here. A tree that is there is kept.
# Of a package in parts_of only these folders are kept, unpatched: all of LLVM is 2 GiB of files.
set -euo pipefail
export LC_ALL=C

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
sources=$root/.work/sources
apt=$root/.work/apt

die() {
    printf 'tools/sources.sh: %s\n' "$*" >&2
    exit 1
}

[ $# -gt 0 ] || die "usage: tools/sources.sh NAME... (Debian source package names)"
for name in "$@"; do
    [[ $name =~ ^[a-z0-9][a-z0-9.+-]+$ ]] || die "'$name' is not a Debian source package name"
done

parts_of() {
    case $1 in
    llvm-toolchain-19) echo llvm/test/ExecutionEngine ;;
    esac
}

missing=()
for name in "$@"; do
    [ -d "$sources/$name" ] || missing+=("$name")
done

# deb-src entries of every source that this machine's apt reads, in both of its formats.
write_entries() {
    local SOURCE_LIST SOURCE_PARTS file
    eval "$(apt-config shell SOURCE_LIST Dir::Etc::sourcelist/f SOURCE_PARTS Dir::Etc::sourceparts/d)"
    rm -rf "$apt/etc"
    mkdir -p "$apt/etc"
    for file in "$SOURCE_LIST" "$SOURCE_PARTS"/*.list; do
        [ -f "$file" ] || continue
        sed -n -E 's/^[[:space:]]*deb([[:space:]])/deb-src\1/p' "$file" >"$apt/etc/$(basename "$file")"
    done
    for file in "$SOURCE_PARTS"/*.sources; do
        [ -f "$file" ] || continue
        sed -E 's/^Types:.*/Types: deb-src/I' "$file" >"$apt/etc/$(basename "$file")"
    done
    grep -rqsE '^(deb-src[[:space:]]|Types: deb-src)' "$apt/etc" ||
        die "this machine's apt has no package source to derive a deb-src entry from"
}

private_apt() {
    local command=$1
    shift
    "$command" -q \
        -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$apt/etc" \
        -o Dir::State::lists="$apt/lists" -o Dir::Cache="$apt/cache" \
        -o APT::Update::Post-Invoke-Success::= -o APT::Sandbox::User= -o Acquire::Retries=3 "$@"
}

# The whole patched tree, or only the parts that are wanted, in the working directory.
unpack() {
    local name=$1 version=$2 parts tars
    parts=$(parts_of "$name")
    if [ -z "$parts" ]; then
        private_apt apt-get source --only-source "$name=$version"
        return
    fi
    private_apt apt-get source --only-source --tar-only --download-only "$name=$version" || return 1
    tars=$(find . -name '*.orig.tar.*' ! -name '*.asc')
    mkdir tree
    # shellcheck disable=SC2086 # one word a folder
    tar -xf "$tars" -C tree --strip-components=1 --wildcards $(printf '*/%s ' $parts) || return 1
    rm -f ./*.tar.*
}

# One tree, unpacked beside its place and renamed into it: a reader sees all of it or none.
# Newest version first; an older one of the same release if a mirror lists files it no longer has.
fetch() {
    local name=$1 work version tree
    work=$(mktemp -d "$sources/.fetch.XXXXXX")
    chmod 755 "$work"
    for version in $(private_apt apt-cache showsrc --only-source "$name" 2>/dev/null |
        sed -n 's/^Version: //p' | sort -rVu); do
        if (cd "$work" && unpack "$name" "$version" >>log 2>&1); then
            tree=$(find "$work" -mindepth 1 -maxdepth 1 -type d)
            mv "$tree" "$sources/$name"
            rm -rf "$work"
            return
        fi
        printf 'tools/sources.sh: %s %s cannot be fetched here\n' "$name" "$version" >&2
        find "$work" -mindepth 1 ! -name log -delete
    done
    cat "$work/log" >&2 2>/dev/null || printf 'no version of %s in any package source\n' "$name" >&2
    rm -rf "$work"
    return 1
}

fetch_missing() {
    local name fresh=no
    for name in "${missing[@]}"; do
        [ -d "$sources/$name" ] && continue # another run had the lock and brought it
        if [ ! -e "$apt/updated" ]; then
            write_entries
            mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
            # One dead third-party source must not stop the others: what counts is `apt-get source`.
            private_apt apt-get update >"$apt/log" 2>&1 || cat "$apt/log" >&2
            touch "$apt/updated"
            fresh=yes
        fi
        if ! fetch "$name"; then
            [ $fresh = no ] || die "apt-get source $name failed; its output is above"
            rm -f "$apt/updated" # lists of an older day may name files that are gone: once more
            fetch_missing
            return
        fi
    done
}

if [ ${#missing[@]} -gt 0 ]; then
    for tool in apt-get dpkg-source flock; do
        command -v $tool >/dev/null || die "$tool is missing; run: sudo apt-get install -y apt dpkg-dev util-linux"
    done
    mkdir -p "$sources" "$apt"
    exec 9>"$root/.work/sources.lock"
    flock 9
    fetch_missing
    exec 9>&-
fi
for name in "$@"; do
    printf '%s\n' "$sources/$name"
done
