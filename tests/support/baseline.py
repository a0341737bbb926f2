"""Small programs for the baseline, and the truth about them: ld's map and the symbol table."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reloader.arch.x86_64 import KINDS
from reloader.elf.archive import read_archive
from reloader.elf.image import Image, read_image
from reloader.elf.object import ObjectFile
from reloader.elf.read import read_object
from reloader.ids import NO_ADDR
from reloader.live.baseline import Baseline, match_baseline
from tests.support.linkmap import LinkMap, read_link_map

# a program with what the baseline must find: statics, tables of functions, a switch, strings
MAIN = """
#include <stdio.h>
int add(int, int);
const char *label(int);
int table_sum(void);
static int counter = 3;
static int scratch[16];
int shown;
int main(int argc, char **argv) {
    for (int i = 0; i < argc; i++) {
        scratch[i & 15] += add(counter, i);
        printf("%s %d\\n", label(i), scratch[i & 15] + table_sum());
    }
    shown = counter++;
    return 0;
}
"""
LIB = """
static int calls = 1;
static int weights[4] = {1, 2, 3, 5};
static int once(int x) { return x * 3 + calls; }
static int twice(int x) { return x * 7 - calls; }
static int (*const ways[])(int) = {once, twice};
int add(int a, int b) { weights[a & 3] += ++calls; return ways[a & 1](b) + weights[b & 3]; }
const char *label(int i) {
    switch (i) {
    case 0: return "zero"; case 1: return "one"; case 2: return "two";
    case 3: return "three"; case 4: return "four"; case 5: return "five";
    }
    return "many";
}
int table_sum(void) {
    int sum = 0;
    for (int i = 0; i < 4; i++) sum += weights[i];
    return sum;
}
"""
SOURCES = {"main.c": MAIN, "lib.c": LIB}


@dataclass(frozen=True, slots=True)
class Linked:
    """A linked program, its objects in memory as they were linked."""

    folder: Path
    executable: Path
    objects: list[ObjectFile]

    def link_map(self) -> LinkMap:
        """Return where ld put the sections."""
        return read_link_map(self.executable.with_suffix(".map"))

    def image(self, *, stripped: bool = False, load_bias: int = 0) -> Image:
        """Return the executable's image."""
        return open_image(
            stripped_copy(self.executable) if stripped else self.executable, load_bias
        )

    def baseline(
        self, objects: Sequence[ObjectFile] | None = None, *, stripped: bool = False
    ) -> Baseline:
        """Match the objects, or others, with the executable."""
        return match_baseline(objects or self.objects, self.image(stripped=stripped), KINDS)


def compile_c(folder: Path, name: str, text: str, *flags: str) -> Path:
    """Compile `folder/NAME` from its text; `.cc` is C++, `.s` assembly."""
    source = folder / name
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(text)
    target = source.with_suffix(".o")
    command = "g++" if source.suffix == ".cc" else "gcc"
    subprocess.run([command, "-c", *flags, source, "-o", target], check=True)
    return target


def link(folder: Path, *arguments: str | Path, compiler: str = "gcc") -> Path:
    """Link `folder/program` with a map beside it; return the executable."""
    target = folder / "program"
    map_flag = f"-Wl,-Map={target.with_suffix('.map')}"
    subprocess.run([compiler, "-o", target, map_flag, *arguments], check=True)
    return target


def build(
    folder: Path,
    sources: dict[str, str],
    *cflags: str,
    ldflags: Sequence[str | Path] = (),
    compiler: str = "gcc",
) -> Linked:
    """Compile and link a program from the texts of its sources."""
    paths = [compile_c(folder, name, text, *cflags) for name, text in sources.items()]
    executable = link(folder, *paths, *ldflags, compiler=compiler)
    return Linked(folder, executable, [load(path) for path in paths])


def archive(folder: Path, name: str, *paths: Path) -> Path:
    """Make an archive of objects."""
    target = folder / name
    command = ["ar", "rcs", target, *paths]
    subprocess.run(command, check=True)
    return target


def members(path: Path) -> list[ObjectFile]:
    """Return all members of an archive."""
    found = read_archive(str(path), path.read_bytes())
    return found.objects()


def load(path: Path) -> ObjectFile:
    """Read an object file."""
    return read_object(str(path), path.read_bytes())


def open_image(path: Path, load_bias: int = 0) -> Image:
    """Read an executable or library."""
    return read_image(np.fromfile(path, np.uint8), load_bias, str(path))


def stripped_copy(path: Path) -> Path:
    """Return a copy of an executable without a symbol table."""
    copy = path.with_name(path.name + ".stripped")
    command = ["strip", "-o", copy, path]
    subprocess.run(command, check=True)
    return copy


def placed_sections(baseline: Baseline) -> dict[tuple[str, str], list[int]]:
    """Return every placed section as the map names them: (file, section) -> addresses."""
    found: dict[tuple[str, str], list[int]] = {}
    for placement in baseline.placements:
        name = placement.file.member or Path(placement.file.path).name
        rows = np.flatnonzero(placement.section_addr != np.uint64(NO_ADDR))
        for row in rows.tolist():
            section = placement.file.section_names[row].decode()
            found.setdefault((name, section), []).append(int(placement.section_addr[row]))
    return found


def has_one_place(key: tuple[str, str], file: ObjectFile) -> bool:
    """Return whether a section of the map is one the baseline must place."""
    rows = [row for row, name in enumerate(file.section_names) if name.decode() == key[1]]
    if key[1].startswith((".eh_frame", ".note", ".comment", ".debug")) or not rows:
        return False
    flags, size = file.sections["sh_flags"][rows], file.sections["sh_size"][rows]
    patched = np.isin(rows, file.relocation_sections)
    return bool(((flags & 2 != 0) & (size > 0) & ((flags & 16 == 0) | patched)).any())


@dataclass(frozen=True, slots=True)
class Score:
    """How placements compare with the map."""

    placed: int
    missed: list[tuple[str, str]]  # in the map, not found
    wrong: list[tuple[str, str]]  # found elsewhere than in the map


def compare_with_map(baseline: Baseline, truth: LinkMap) -> Score:
    """Compare every section with ld's map."""
    found = placed_sections(baseline)
    files = {
        placement.file.member or Path(placement.file.path).name: placement.file
        for placement in baseline.placements
    }
    wrong = [
        key for key, addrs in found.items() if not set(addrs) <= set(truth.placed.get(key, []))
    ]
    expected = [
        key for key in truth.placed if key[0] in files and has_one_place(key, files[key[0]])
    ]
    missed = [key for key in expected if key not in found]
    return Score(len(found), missed, wrong)


def symbols(path: Path) -> dict[str, int]:
    """Return the executable's symbols by `nm`; of equal names the last."""
    command = ["nm", path]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = (line.split() for line in run.stdout.splitlines())
    return {row[2]: int(row[0], 16) for row in rows if len(row) == 3}


def symbol_addr(baseline: Baseline, row: int, name: str) -> int:
    """Return where the baseline has an object's symbol."""
    placement = baseline.placements[row]
    return int(placement.symbol_addr[placement.file.symbol_names.index(name.encode())])
