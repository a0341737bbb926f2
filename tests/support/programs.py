"""Real programs, built by their own build systems, with ld's map beside them.

A program is built once a variant and kept in `.work/built`; a recipe that changed builds anew.
`python -m tests.support.programs` builds all of them beforehand.
"""

import fcntl
import hashlib
import inspect
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.sources import ROOT, copied_source

BUILT: Final = ROOT / ".work" / "built"


class BuildError(Exception):
    """A command of a program's build failed; the text is the end of its output."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Flags that are added to those of the program's own build."""

    cflags: str = ""
    ldflags: str = ""


VARIANTS: Final = {
    "pie": Variant(),
    "nopie": Variant("-fno-pie", "-no-pie"),
    "sections": Variant("-ffunction-sections -fdata-sections", "-Wl,--gc-sections"),
}


@dataclass(frozen=True, slots=True)
class BuiltProgram:
    """A finished build; objects are what the linker was given."""

    folder: Path  # the build ran here
    executable: Path
    map_file: Path  # ld's -Map
    objects: list[Path]

    def stripped(self) -> Path:
        """Return a copy of the executable without a symbol table."""
        copy = self.executable.with_name(self.executable.name + ".stripped")
        if not copy.exists():
            partial = copy.with_name(f"{copy.name}.{os.getpid()}")
            run(self.folder, "strip", "-o", partial, self.executable)
            partial.replace(copy)
        return copy


Recipe = Callable[[Path, Variant], BuiltProgram]


def run(folder: Path, *command: str | Path, env: dict[str, str] | None = None) -> None:
    """Run one command of a build.

    Raises:
        BuildError: It failed.
    """
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = done.stdout[-4000:]
        text = f"{' '.join(words)} in {folder} ended with {done.returncode}:\n{tail}"
        raise BuildError(text)


def build_lua(variant: str = "pie") -> BuiltProgram:
    """Return the Lua 5.4 interpreter: 33 objects, 32 of them through an archive."""
    return _built("lua", variant, _lua)


def build_memcached(variant: str = "pie") -> BuiltProgram:
    """Return memcached: threads, thread-local variables, big tables."""
    return _built("memcached", variant, _memcached)


def build_nginx(variant: str = "pie") -> BuiltProgram:
    """Return nginx: some 150 objects."""
    return _built("nginx", variant, _nginx)


def build_sqlite(variant: str = "pie") -> BuiltProgram:
    """Return the sqlite shell: two very large objects."""
    return _built("sqlite", variant, _sqlite)


def link_again(program: BuiltProgram, name: str, *flags: str) -> BuiltProgram:
    """Link a program's objects once more with other linker flags, next to the first."""
    executable = program.executable.with_name(name)
    again = BuiltProgram(
        program.folder, executable, executable.with_suffix(".map"), program.objects
    )
    with _locked(executable.with_suffix(".lock")):
        if not executable.exists():
            partial = executable.with_suffix(".partial")
            libraries = (program.folder / "libraries").read_text().split()
            map_flag = f"-Wl,-Map={again.map_file}"
            run(
                program.folder, "gcc", "-o", partial, *program.objects, *libraries,
                map_flag, *flags,
            )  # fmt: skip
            partial.replace(executable)
    return again


def _built(name: str, variant: str, recipe: Recipe) -> BuiltProgram:
    """Build, or return what an earlier run built with the same recipe."""
    folder = BUILT / f"{name}-{variant}"
    text = inspect.getsource(recipe) + repr(VARIANTS[variant])
    key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    done = folder / "built.json"
    with _locked(folder.with_suffix(".lock")):
        if not done.exists() or json.loads(done.read_text())["key"] != key:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            program = recipe(folder, VARIANTS[variant])
            record = {
                "key": key,
                "folder": str(program.folder),
                "executable": str(program.executable),
                "map_file": str(program.map_file),
                "objects": [str(path) for path in program.objects],
            }
            done.write_text(json.dumps(record))
    record = json.loads(done.read_text())
    return BuiltProgram(
        Path(record["folder"]),
        Path(record["executable"]),
        Path(record["map_file"]),
        [Path(path) for path in record["objects"]],
    )


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Let one process at a time in; the kernel drops the lock of one that dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sorted(paths: Iterable[Path]) -> list[Path]:
    return sorted(path.resolve() for path in paths)


def _lua(folder: Path, variant: Variant) -> BuiltProgram:
    tree = copied_source("lua5.4", folder)
    # Debian replaces Lua's makefile by one that needs libtool: take Lua's own back
    for name in ("0002-lua-modules-paths", "0001-build-system"):
        run(tree, "patch", "-R", "-p1", "-i", tree / "debian" / "patches" / f"{name}.patch")
    source = tree / "src"
    run(
        source, "make", "-j2", "lua",
        "SYSCFLAGS=-DLUA_USE_LINUX", "SYSLIBS=-Wl,-E -ldl", f"MYCFLAGS=-g {variant.cflags}",
        f"MYLDFLAGS={variant.ldflags} -Wl,-Map=lua.map",
    )  # fmt: skip
    return BuiltProgram(source, source / "lua", source / "lua.map", _sorted(source.glob("*.o")))


def _memcached(folder: Path, variant: Variant) -> BuiltProgram:
    tree = copied_source("memcached", folder)
    cflags = f"-g -O2 {variant.cflags}"
    run(tree, "./configure", "--enable-tls", f"CFLAGS={cflags}", f"LDFLAGS={variant.ldflags}")
    run(tree, "make", "-j2", "memcached", f"LDFLAGS={variant.ldflags} -Wl,-Map=memcached.map")
    objects = _sorted(tree.glob("memcached-*.o"))
    return BuiltProgram(tree, tree / "memcached", tree / "memcached.map", objects)


def _nginx(folder: Path, variant: Variant) -> BuiltProgram:
    tree = copied_source("nginx", folder)
    modules = (
        "http_ssl", "http_stub_status", "http_realip", "http_auth_request", "http_v2",
        "http_dav", "http_slice", "http_addition", "http_flv", "http_gunzip",
        "http_gzip_static", "http_mp4", "http_random_index", "http_secure_link", "http_sub",
        "mail_ssl", "stream_ssl", "stream_ssl_preread", "stream_realip",
    )  # fmt: skip
    run(
        tree, "./configure", "--with-compat", "--with-debug", "--with-pcre-jit",
        "--with-threads", "--with-mail", "--with-stream",
        *(f"--with-{name}_module" for name in modules),
        f"--with-cc-opt=-g -O2 {variant.cflags}",
        f"--with-ld-opt={variant.ldflags} -Wl,-Map=nginx.map",
    )  # fmt: skip
    run(tree, "make", "-j2", "-f", "objs/Makefile", "objs/nginx")
    (tree / "libraries").write_text("-lcrypt -lpcre2-8 -lssl -lcrypto -lz -ldl -lpthread")
    objects = _sorted((tree / "objs").rglob("*.o"))
    return BuiltProgram(tree, tree / "objs" / "nginx", tree / "nginx.map", objects)


def _sqlite(folder: Path, variant: Variant) -> BuiltProgram:
    tree = copied_source("sqlite3", folder)
    build = folder / "build"
    build.mkdir()
    run(build, tree / "configure", "--disable-tcl")
    run(build, "make", "sqlite3.c", "shell.c")
    # the makefile compiles and links in one gcc command that keeps no objects
    flags = (
        "-g", "-O2", "-fno-strict-aliasing", "-DSQLITE_THREADSAFE=1", "-DSQLITE_ENABLE_FTS3",
        "-DSQLITE_ENABLE_RTREE=1", "-DSQLITE_ENABLE_COLUMN_METADATA", "-DHAVE_READLINE=1",
        "-DSQLITE_ENABLE_SESSION", "-DSQLITE_ENABLE_PREUPDATE_HOOK", "-I.",
        *variant.cflags.split(),
    )  # fmt: skip
    for name in ("sqlite3", "shell"):
        run(build, "gcc", *flags, "-c", f"{name}.c", "-o", f"{name}.o")
    run(
        build, "gcc", "-o", "sqlite3", "shell.o", "sqlite3.o", *variant.ldflags.split(),
        "-Wl,-Map=sqlite3.map", "-lreadline", "-lz", "-lm",
    )  # fmt: skip
    objects = _sorted(build.glob("*.o"))
    return BuiltProgram(build, build / "sqlite3", build / "sqlite3.map", objects)


def main(names: Sequence[str] = ("pie", "nopie", "sections")) -> None:
    """Build everything that the tests use."""
    for name in names:
        build_lua(name)
        build_memcached(name)
    build_nginx()
    build_sqlite()


if __name__ == "__main__":
    main()
