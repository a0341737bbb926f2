"""What stands in the way is named with its remedy, beforehand and at attach."""

import struct
from pathlib import Path

import pytest

from reloader.errors.live import AttachError, TargetGoneError
from reloader.live.doctor import examine
from reloader.live.inject import attach
from tests.support.live import compile_program, compile_text, hear, running

pytestmark = pytest.mark.live

WAITS = r"""
#include <unistd.h>
int main(void) {
  char byte;
  return write(1, "r\n", 2) != 2 || read(0, &byte, 1) < 0;
}
"""


def test_an_ordinary_program_has_nothing_in_the_way() -> None:
    path = compile_program("worker")
    assert [f for f in examine(str(path)) if f.level == "error"] == []
    with running([path]) as child:
        hear(child)
        assert [f for f in examine(child.pid) if f.level == "error"] == []


def test_a_static_program_is_refused_with_the_remedy() -> None:
    with running([compile_text(WAITS, "static", "-static")]) as child:
        hear(child)
        with pytest.raises(AttachError) as refused:
            attach(child.pid)
        assert str(refused.value) == (
            f"process {child.pid} cannot be entered:\n"
            f"  process {child.pid} is statically linked: it has no dynamic loader to bring the"
            " agent in. Link it without -static\nNothing was changed."
        )


@pytest.mark.parametrize(("machine", "word", "name"), [(183, 2, "AArch64"), (3, 1, "i386")])
def test_another_architecture_is_named(
    tmp_path: Path, machine: int, word: int, name: str
) -> None:
    path = tmp_path / "program"
    ident = b"\x7fELF" + bytes([word, 1, 1]) + bytes(9)
    path.write_bytes(ident + struct.pack("<HHI", 2, machine, 1) + bytes(40))
    assert f"is a program for {name}" in examine(str(path))[0].text


def test_a_script_is_not_an_executable(tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text("#!/bin/sh\n")
    assert examine(str(path))[0].subject == "format"


def test_a_setuid_program_is_named(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(compile_program("worker").read_bytes())
    path.chmod(0o4755)
    assert [f.subject for f in examine(str(path))] == ["setuid"]


def test_a_process_that_does_not_exist_is_said_so() -> None:
    with pytest.raises(TargetGoneError, match="has ended"):
        examine(4_000_000)
