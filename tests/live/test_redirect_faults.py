"""What a redirect does when somebody stands in the way or a write fails."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from reloader.errors.redirect import CodeChangedError, PcInPatchError
from reloader.ids import Addr
from reloader.live.frames import CodeRanges, active_functions
from reloader.live.patching import (
    Patience,
    apply_redirects,
    overwritten,
    undo_redirects,
)
from reloader.live.redirect import Places, got_writes, joined, plan_redirects
from tests.support.redirect import Child, rows_of
from tests.support.redirected import BUSY, ONE_THREAD, SIMPLE, Start, starting


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with starting(tmp_path) as run:
        yield run


def test_a_changed_byte_is_named_and_nothing_is_written(start: Start) -> None:
    child = start(SIMPLE, "-O2")
    plan = plan_redirects(child.functions({"old_one": "new_one"}), child.read)
    entry = int(plan.addr[0])
    before = child.read(Addr(entry), 5).tobytes()
    with child.stop() as stopped:
        stopped.write(Addr(entry), b"\xcc")
    with pytest.raises(CodeChangedError) as caught:
        apply_redirects(plan, child)
    assert str(caught.value) == (
        f"old_one at {entry:#x}: the program holds the bytes cc {before[1:].hex(' ')}, expected"
        f" {before.hex(' ')}. Nothing was changed. Something else writes this code: remove a"
        " debugger's breakpoint there, or stop the other patching tool."
    )
    with child.stop() as stopped:
        stopped.write(Addr(entry), before[:1])
    assert child.ask("1") == "2"


def test_a_signal_frame_inside_the_patch_is_waited_for(start: Start) -> None:
    child = start(SIMPLE, "-O2")
    plan = plan_redirects(child.functions({"old_one": "new_one"}), child.read)
    inside = int(plan.addr[0]) + 3
    child.extra = [[inside], [inside], [int(plan.addr[0])]]
    result = apply_redirects(plan, child)
    assert result.tries == 3
    assert result.waited > 0
    assert child.ask("1") == "3"


def test_a_thread_that_never_leaves_the_patch_is_named(start: Start) -> None:
    child = start(SIMPLE, "-O2")
    plan = plan_redirects(child.functions({"old_one": "new_one"}), child.read)
    entry = int(plan.addr[0])
    child.extra = [[entry + 1]] * 4
    with pytest.raises(PcInPatchError) as caught:
        apply_redirects(plan, child, patience=Patience(tries=4))
    assert str(caught.value) == (
        f"old_one: a thread interrupted by a signal stands at {entry + 1:#x}, inside the bytes"
        f" from {entry:#x} that a jump has to replace, at each of 4 stops. Nothing was changed."
        " Save the file again to try once more, or let the program leave this function first."
    )
    assert child.stops == 4
    assert child.ask("1") == "2"


PARKED = """\t.text
	.globl main
	.type old_one, @function
	.p2align 4
old_one: xor %eax, %eax
	syscall
	ret
	nopl 0(%rax,%rax,1)
	.size old_one, .-old_one
	.p2align 4
	.type new_one, @function
new_one: ret
	.size new_one, .-new_one
	.p2align 4
	.type main, @function
main:	push %rbx
	lea ready(%rip), %rdi
	call puts@plt
	mov stdout@GOTPCREL(%rip), %rax
	mov (%rax), %rdi
	call fflush@plt
	xor %edi, %edi
	lea buffer(%rip), %rsi
	mov $1, %edx
	call old_one
	xor %eax, %eax
	pop %rbx
	ret
	.size main, .-main
	.data
ready:	.string "ready"
buffer:	.byte 0
	.section .note.GNU-stack,"",@progbits
"""


def test_a_thread_in_a_system_call_inside_the_patch_is_named(start: Start) -> None:
    child = start(PARKED)
    plan = plan_redirects(child.functions({"old_one": "new_one"}), child.read)
    inside = child.address("old_one") + 4
    while child.process.poll() is None:
        with child.stop() as stopped:
            if inside in stopped.program_counters().tolist():
                break
    with pytest.raises(PcInPatchError) as caught:
        apply_redirects(plan, child, patience=Patience(tries=2))
    assert (caught.value.tid, caught.value.thread) == (child.pid, "program")
    assert f"thread program ({child.pid}) stands at {inside:#x}" in str(caught.value)


def test_a_failed_write_takes_back_the_ones_before_it(start: Start) -> None:
    child = start(SIMPLE, "-O2")
    functions = child.functions({"old_one": "new_one"})
    plan = plan_redirects(functions, child.read)
    table = np.array([child.address("value")], np.uint64)
    row = np.array(rows_of(functions, ["old_one"]), np.int32)
    both = joined([plan, got_writes(Places(table, row), functions, child.read)])
    child.fail_at = 1
    with pytest.raises(OSError, match="no more writes"):
        apply_redirects(both, child)
    child.fail_at = -1
    for at in range(len(both)):
        size = int(both.size[at])
        now = child.read(Addr(int(both.addr[at])), size)
        assert np.array_equal(now, both.old[at, :size])


def test_what_fails_within_the_stop_leaves_the_code_alone(start: Start) -> None:
    child = start(SIMPLE, "-O2")
    plan = plan_redirects(child.functions({"old_one": "new_one"}), child.read)
    told: list[str] = []

    def flip() -> None:
        assert overwritten(plan, child).all()  # the slots first, then the jumps
        message = "a slot is missing"
        raise KeyError(message)

    with pytest.raises(KeyError, match="a slot is missing"):
        apply_redirects(plan, child, flip, back=lambda: told.append("back"))
    assert told == ["back"]
    assert overwritten(plan, child).all()
    assert child.ask("1") == "2"


def test_a_jump_that_cannot_be_written_takes_the_slots_back(start: Start) -> None:
    child = start(SIMPLE, "-O2")
    plan = plan_redirects(child.functions({"old_one": "new_one"}), child.read)
    told: list[str] = []
    child.fail_at = 0
    with pytest.raises(OSError, match="no more writes"):
        apply_redirects(
            plan, child, lambda: told.append("new"), back=lambda: told.append("old")
        )
    child.fail_at = -1
    assert told == ["new", "old"]
    assert overwritten(plan, child).all()
    assert child.ask("1") == "2"


def test_calls_through_the_got_reach_the_new_function(start: Start) -> None:
    source = ONE_THREAD % (
        "extern int abs(int);\n"
        "__attribute__((noipa)) int new_one(int n) { value++; return n * 100; }\n"
        "#define old_one abs"
    )
    child = start(source, "-O2", "-fno-builtin", "-fno-plt", "-Wl,-z,relro,-z,now")
    assert child.ask("-4") == "4"
    functions = child.functions({"main": "new_one"})
    libc = _got_of(child, "abs")
    entries = Places(
        np.array([libc], np.uint64), np.array(rows_of(functions, ["main"]), np.int32)
    )
    result = apply_redirects(got_writes(entries, functions, child.read), child)
    assert child.ask("-4") == "-400"
    undo_redirects(result, child)
    assert child.ask("-4") == "4"


def _got_of(child: Child, name: str) -> int:
    text = subprocess.run(
        ["readelf", "-rW", child.program],  # noqa: S607  the system's, wherever it is
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    line = next(line for line in text.splitlines() if f" {name}@" in line)
    return child.base() + int(line.split()[0], 16)


def test_functions_on_a_stack_are_named_as_active(start: Start) -> None:
    child = start(BUSY, "-O2")
    table = child.functions({})
    with child.stop() as stopped:
        tids, registers = stopped.tids, stopped.registers.copy()
    ranges = CodeRanges(table.addr, table.size, table.name)
    active = active_functions(child, tids, registers, ranges)
    by_thread = {row.tid: set[str]() for row in active}
    for row in active:
        by_thread[row.tid].add(row.name)
    assert "main" in by_thread[child.pid]
    others = [names for tid, names in by_thread.items() if tid != child.pid]
    assert len(others) == 8
    assert all("loop" in names for names in others)
