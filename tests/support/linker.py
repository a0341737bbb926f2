"""`reloader link` and `reloader run` on small objects, as commands."""

import subprocess
from pathlib import Path

from tests.support.daemon import CLI
from tests.support.programs import build_lua, build_sqlite

HELLO = """
#include <stdio.h>
#include <stdlib.h>
static int ready;
__attribute__((constructor(200))) static void second(void) { puts("second"); }
__attribute__((constructor(101))) static void first(void) { puts("first"); ready = 1; }
__attribute__((destructor)) static void last(void) { puts("destructor"); }
static void at_exit(void) { puts("atexit"); }
int main(int argc, char **argv)
{
    atexit(at_exit);
    fprintf(stderr, "to stderr\\n");
    for (int i = 1; i < argc; i++)
        printf("%s ", argv[i]);
    printf("%d\\n", ready);
    return 40 + argc;
}
"""


def compile_to(folder: Path, name: str, text: str, *flags: str, cc: str = "gcc") -> Path:
    """Compile `NAME.c` or `NAME.cc` of a text to NAME.o."""
    source = folder / name
    source.write_text(text)
    target = source.with_suffix(".o")
    command = [cc, "-c", *flags, name, "-o", target.name]
    subprocess.run(command, cwd=folder, check=True)
    return target


def archive(folder: Path, name: str, *members: str) -> Path:
    """Make an archive of objects."""
    command = ["ar", "rcs", name, *members]
    subprocess.run(command, cwd=folder, check=True)
    return folder / name


def link(folder: Path, *words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run `reloader link`."""
    return _reloader(folder, "link", *map(str, words), stdin=stdin)


def run(folder: Path, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run `reloader run`."""
    return _reloader(folder, "run", *words, stdin=stdin)


def _reloader(folder: Path, *words: str, stdin: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *words],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def lua_words() -> list[str]:
    """Return what the Lua interpreter is linked from."""
    lua = build_lua()
    return [str(lua.folder / "lua.o"), str(lua.folder / "liblua.a"), "-lm"]


def sqlite_words() -> list[str]:
    """Return what the sqlite shell is linked from."""
    return [*map(str, build_sqlite().objects), "-lreadline", "-lz", "-lm"]
