#!/bin/bash
# Make OCaml 5.3 usable beside Debian 12's 4.13: a Debian 13 root in .work/trixie, commands in .work/ocaml53/bin.
#
#   tools/ocaml53.sh          makes what is missing; prints nothing when all is there
#
# debootstrap makes the root from this machine's own package source, with its keys, proxies and
# certificates; DEBIAN_MIRROR=URL names another one. Only making it needs root. The commands run
# outside of the root, through its dynamic linker, so that they see every folder; they compile
# against its headers and libraries, and what they link runs on those, as an ordinary process.
# Interrupted, it goes on where it stopped.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
root=$project/.work/trixie
bin=$project/.work/ocaml53/bin
log=$project/.work/trixie.log
suite=trixie
packages=(ocaml-nox ocaml-findlib ocaml-dune liblwt-ocaml-dev libcohttp-lwt-unix-ocaml-dev)
made=$(printf '%s\n' "$project" "${packages[@]}" | cat - "${BASH_SOURCE[0]}" | sha256sum)

die() {
    printf 'tools/ocaml53.sh: %s\n' "$*" >&2
    exit 1
}

# What a command prints is shown only if it fails.
quietly() {
    "$@" >>"$log" 2>&1 </dev/null || {
        tail -n 40 "$log" >&2
        die "failed: $*
The whole output is in $log. Run this again to go on; rm -rf .work/trixie to begin anew."
    }
}

# The address of the first Debian archive (not the security one) that this machine's apt reads,
# from both formats of its sources.
mirror() {
    local SOURCE_LIST SOURCE_PARTS file
    [ -z "${DEBIAN_MIRROR:-}" ] || { printf '%s\n' "$DEBIAN_MIRROR"; return; }
    eval "$(apt-config shell SOURCE_LIST Dir::Etc::sourcelist/f SOURCE_PARTS Dir::Etc::sourceparts/d)"
    for file in "$SOURCE_LIST" "$SOURCE_PARTS"/*.list; do
        [ ! -f "$file" ] || sed -n -E 's/^[[:space:]]*deb[[:space:]]+(\[[^]]*\][[:space:]]+)?//p' "$file"
    done >"$project/.work/mirrors"
    for file in "$SOURCE_PARTS"/*.sources; do
        [ ! -f "$file" ] || sed -n -E 's/^URIs:[[:space:]]*([^[:space:]]+).*/\1/Ip' "$file"
    done >>"$project/.work/mirrors"
    awk '$1 ~ /^https?:.*\/debian\/?$/ {print $1; exit}' "$project/.work/mirrors"
    rm -f "$project/.work/mirrors"
}

need() {
    [ "$(id -u)" = 0 ] || die "OCaml 5.3's root can only be made by root; run: sudo tools/ocaml53.sh"
    command -v debootstrap >/dev/null ||
        die "debootstrap is missing; run: apt-get install -y debootstrap"
    address=$(mirror)
    [ -n "$address" ] || die "this machine's apt reads no Debian archive whose address ends in /debian;
run: DEBIAN_MIRROR=URL tools/ocaml53.sh, with the address of one that has $suite"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -f "$keyring" ] || die "$keyring is missing; run: apt-get install -y debian-archive-keyring"
}

bootstrap() {
    [ ! -e "$root/.bootstrapped" ] || return 0
    rm -rf "$root"
    mkdir -p "$root" "$project/.work/trixie.debs"
    : >"$log"
    quietly debootstrap --variant=minbase --keyring="$keyring" \
        --cache-dir="$project/.work/trixie.debs" "$suite" "$root" "$address"
    touch "$root/.bootstrapped"
}

# apt of the root reaches the network as this machine's does; nothing is synced or documented.
configure() {
    mkdir -p "$root/etc/apt/apt.conf.d" "$root/etc/dpkg/dpkg.cfg.d" "$root/etc/ssl/certs"
    apt-config dump | grep -E '^Acquire::(http|https)::' >"$root/etc/apt/apt.conf.d/90machine" || true
    [ ! -f /etc/ssl/certs/ca-certificates.crt ] || cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    printf '%s\n' force-unsafe-io 'path-exclude=/usr/share/doc/*' 'path-exclude=/usr/share/man/*' \
        'path-exclude=/usr/share/locale/*' >"$root/etc/dpkg/dpkg.cfg.d/small"
    cp -L /etc/resolv.conf /etc/hosts "$root/etc/" 2>/dev/null || true
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # no service is started
    chmod 755 "$root/usr/sbin/policy-rc.d"
}

install() {
    local inside=(chroot "$root" /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin)
    quietly "${inside[@]}" dpkg --configure -a
    quietly "${inside[@]}" apt-get -q -o APT::Sandbox::User=root update
    quietly "${inside[@]}" apt-get -q -y -o APT::Sandbox::User=root \
        --no-install-recommends install "${packages[@]}"
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$project/.work/trixie.debs"
}

# What debootstrap's commands need to run outside of the root, and to find its files there.
wrap() {
    local libraries=$root/usr/lib/x86_64-linux-gnu loader=$root/lib64/ld-linux-x86-64.so.2 where file name
    where=$(dirname "$(find "$libraries/ocaml" -name stdlib.cmxa -print -quit)")
    [ -f "$where/stdlib.cmxa" ] || die "no OCaml library under $libraries/ocaml"
    rm -rf "$bin"
    mkdir -p "$bin"
    printf 'path="%s"\ndestdir="%s"\nldconf="%s/ld.conf"\n' "$where" "$where" "$bin" >"$bin/findlib.conf"
    printf '%s\n' "$where/stublibs" "$where" >"$bin/ld.conf"
    for file in "$root"/usr/bin/ocaml*.opt "$root"/usr/bin/{ocamlfind,dune}; do
        name=$(basename "$file" .opt)
        cat >"$bin/$name" <<END
#!/bin/sh
export PATH="$bin:\$PATH" OCAMLLIB="$where" OCAMLFIND_CONF="$bin/findlib.conf" CAML_LD_LIBRARY_PATH="$where/stublibs"
exec "$loader" --argv0 "\$0" --library-path "$libraries" "$file" "\$@"
END
        [ "$file" = "${file%.opt}" ] || ln -s "$name" "$bin/$name.opt"
    done
    # ocamlopt links through it: the root's C library (-B and -L: this machine's gcc would look at
    # its own folder first, whatever the sysroot), and for the result the root's dynamic
    # linker and an rpath that its libraries' own libraries are found by too.
    cat >"$bin/x86_64-linux-gnu-gcc" <<END
#!/bin/sh
exec "$(command -v gcc)" --sysroot="$root" -B"$libraries" -L"$libraries" \\
    "-Wl,-dynamic-linker=$loader,--disable-new-dtags,-rpath=$libraries" "\$@"
END
    ln -s x86_64-linux-gnu-gcc "$bin/gcc"
    chmod 755 "$bin"/*
}

mkdir -p "$project/.work"
[ "$(cat "$root/.made" 2>/dev/null)" != "$made" ] || exit 0
command -v flock >/dev/null || die "flock is missing; run: apt-get install -y util-linux"
exec 9>"$project/.work/trixie.lock" # two makes at a time in one clone
flock 9
[ "$(cat "$root/.made" 2>/dev/null)" != "$made" ] || exit 0
need
printf 'tools/ocaml53.sh: OCaml 5.3 from %s, once, takes minutes\n' "$suite" >&2
bootstrap
configure
install
wrap
printf '%s\n' "$made" >"$root/.made"
