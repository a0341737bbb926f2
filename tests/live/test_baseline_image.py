"""The image of an executable: compared with readelf and with a process that runs it."""

import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reloader.elf.image import Image, read_image
from reloader.errors.base import ReloaderError
from reloader.errors.baseline import (
    MalformedImageError,
    NotOfThisProgramError,
    WrongImageError,
)
from tests.support.baseline import build, compile_c, link, open_image, stripped_copy

MAIN = """
#include <stdio.h>
static int number = 5;
__thread int local = 3;
int answer(void) { return number; }
int (*const way)(void) = answer;
const char *const words[] = {"alpha", "beta", "gamma"};
int *pointer = &number;
int main(void) { puts("ready"); fflush(stdout); return getchar() + words[0][0] + local; }
"""
FLAGS = {
    "pie": ((), ()),
    "nopie": (("-fno-pie",), ("-no-pie",)),
    "relr": ((), ("-Wl,-z,pack-relative-relocs",)),
    "now": ((), ("-Wl,-z,now",)),
}


def live_bytes(executable: Path, addr: int, size: int) -> tuple[int, bytes]:
    """Return the load bias of a process that runs the executable, and some of its memory."""
    command = [executable]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        maps = Path(f"/proc/{child.pid}/maps").read_text().splitlines()
        first = next(line for line in maps if line.endswith(str(executable)))
        linked_at = open_image(executable).low & ~0xFFF
        bias = int(first.split("-")[0], 16) - linked_at
        with Path(f"/proc/{child.pid}/mem").open("rb") as memory:
            memory.seek(addr + bias)
            content = memory.read(size)
        child.communicate(b"x")
    return bias, content


def addr_of(image: Image, name: bytes) -> int:
    return int(image.symtab.addr[image.symtab.name.index(name)])


@pytest.mark.parametrize("kind", FLAGS)
def test_relocated_constants_are_those_of_the_running_process(
    tmp_path: Path, kind: str
) -> None:
    cflags, ldflags = FLAGS[kind]
    executable = build(tmp_path, {"main.c": MAIN}, "-O1", *cflags, ldflags=ldflags).executable
    for name, size in ((b"way", 8), (b"words", 24), (b"pointer", 8)):
        bias, live = live_bytes(executable, addr_of(open_image(executable), name), size)
        image = open_image(executable, bias)
        assert image.bytes_at(addr_of(image, name), size).tobytes() == live
        if name == b"way":
            assert int.from_bytes(live, "little") == addr_of(image, b"answer")


def test_image_says_what_readelf_says(tmp_path: Path) -> None:
    executable = build(tmp_path, {"main.c": MAIN}, ldflags=["-Wl,--build-id=sha1"]).executable
    command = ["readelf", "-nldW", executable]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    image = open_image(executable)
    assert f"Build ID: {image.build_id}" in text
    assert f"[Requesting program interpreter: {image.interpreter}]" in text
    assert [f"[{name}]" in text for name in image.needed] == [True]
    assert image.tls is not None
    assert (image.tls.size, image.tls.align, image.tls.tpoff(0)) == (4, 4, -4)
    assert (image.is_pie, image.is_static) == (True, False)
    assert b"puts" in image.got.name
    assert int(image.symtab.addr[image.symtab.name.index(b"local")]) == 2**64 - 4
    for start, end in image.executable.tolist():
        assert (start <= image.entry < end) or end == start


def test_stripped_image_has_no_symtab_but_its_dynamic_symbols(tmp_path: Path) -> None:
    executable = build(tmp_path, {"main.c": MAIN}, ldflags=["-rdynamic"]).executable
    image = open_image(stripped_copy(executable))
    assert len(image.symtab) == 0
    row = image.dynsym.name.index(b"answer")
    full = open_image(executable)
    assert int(image.dynsym.addr[row]) == addr_of(full, b"answer")
    # the ELF header alone counts other sections
    assert (image.memory[64:] == full.memory[64:]).all()


def test_image_without_section_headers_is_read(tmp_path: Path) -> None:
    executable = build(tmp_path, {"main.c": MAIN}).executable
    data = np.fromfile(executable, np.uint8)
    data[0x28:0x30] = 0  # e_shoff
    data[0x3C:0x40] = 0  # e_shnum, e_shstrndx
    image = read_image(data)
    assert len(image.symtab) == 0
    assert image.dynsym.name == open_image(executable).dynsym.name


@pytest.mark.parametrize(
    ("flag", "is_pie", "is_static"),
    [("-static", False, True), ("-static-pie", True, True), ("-shared", False, False)],
)
def test_kind_of_image_is_recognised(
    tmp_path: Path, flag: str, *, is_pie: bool, is_static: bool
) -> None:
    path = compile_c(tmp_path, "main.c", "int main(void) { return 0; }", "-fPIC")
    image = open_image(link(tmp_path, path, flag))
    assert (image.is_pie, image.is_static) == (is_pie, is_static)


def test_copied_library_variable_is_listed(tmp_path: Path) -> None:
    text = "#include <stdio.h>\nint main(void) { return stdout == 0; }"
    program = build(tmp_path, {"main.c": text}, "-fno-pie", ldflags=["-no-pie"])
    image = program.image()
    assert image.copies.name == [b"stdout"]
    assert int(image.copies.addr[0]) == addr_of(image, b"stdout")


def read(data: bytes) -> Image:
    return read_image(np.frombuffer(data, np.uint8), 0, "/p/prog")


def test_empty_file_is_refused() -> None:
    with pytest.raises(MalformedImageError) as caught:
        read(b"")
    assert str(caught.value) == (
        "/p/prog: not a usable executable image: it has 0 bytes, an ELF header has 64. "
        "Nothing was changed. Check that the file was copied or linked completely."
    )


def test_object_file_is_not_an_image(tmp_path: Path) -> None:
    path = compile_c(tmp_path, "main.c", "int main(void) { return 0; }")
    with pytest.raises(WrongImageError) as caught:
        read(path.read_bytes())
    assert str(caught.value) == (
        "/p/prog: is a relocatable object, expected an executable or shared library. "
        "Nothing was changed."
    )


@pytest.mark.parametrize(
    ("at", "value", "text"),
    [
        (0, 0, "is not an ELF file, expected an executable or shared library"),
        (4, 1, "is a 32-bit or big-endian ELF file, expected 64-bit little-endian"),
        (0x10, 4, "is a core dump, expected an executable or shared library"),
        (0x12, 183, "is for machine 183, expected x86-64 (machine 62)"),
    ],
)
def test_other_file_is_refused_by_what_it_is(
    tmp_path: Path, at: int, value: int, text: str
) -> None:
    data = bytearray(build(tmp_path, {"main.c": MAIN}).executable.read_bytes())
    data[at] = value
    with pytest.raises(WrongImageError) as caught:
        read(bytes(data))
    assert str(caught.value) == f"/p/prog: {text}. Nothing was changed."


def test_truncated_image_names_both_sizes(tmp_path: Path) -> None:
    data = build(tmp_path, {"main.c": MAIN}).executable.read_bytes()[:8192]
    with pytest.raises(MalformedImageError) as caught:
        read(data)
    assert str(caught.value).startswith("/p/prog at byte ")
    assert "the file at 8192. Nothing was changed." in str(caught.value)


def test_refused_object_says_why_and_what_to_do() -> None:
    reason = ".text+0x4 (draw) has other bytes than the program at 0x1144"
    assert str(NotOfThisProgramError("/p/hud.o", reason)) == (
        "/p/hud.o: the running program was not built from this file: .text+0x4 (draw) has "
        "other bytes than the program at 0x1144. Nothing was changed. Restart the program "
        "from the current build, or watch the objects it was linked from."
    )


@pytest.fixture(scope="module")
def small_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    flags = ["-Wl,-z,pack-relative-relocs"]
    return build(folder, {"main.c": MAIN}, ldflags=flags).executable


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_image_is_read_or_refused(
    small_image: Path, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(small_image.read_bytes())
    segments = open_image(small_image).segments
    dynamic = int(segments["p_offset"][segments["p_type"] == 2][0])  # PT_DYNAMIC
    for where, value in changes:
        data[int(where * 1100)] = value  # header, program headers, notes, hash, symbols
        data[dynamic + int(where * 511)] ^= value
    with suppress(ReloaderError):
        read(bytes(data))
