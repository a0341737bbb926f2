"""Entry jumps in real running programs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reloader.errors.redirect import NotRedirectableError
from reloader.ids import Addr
from reloader.live.patching import (
    apply_redirects,
    overwritten,
    undo_redirects,
)
from reloader.live.redirect import Places, Way, plan_redirects
from tests.support.redirect import rows_of
from tests.support.redirected import BUSY, ONE_THREAD, Start, starting

pytestmark = pytest.mark.live


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with starting(tmp_path) as run:
        yield run


@pytest.mark.parametrize(
    "flags",
    [
        ("-O2",),
        ("-O0",),
        ("-Os", "-no-pie"),
        ("-O2", "-fcf-protection=full"),
        ("-O3", "-static"),
    ],
    ids=" ".join,
)
def test_eight_threads_in_a_tight_loop_reach_the_new_function(
    start: Start, flags: tuple[str, ...]
) -> None:
    child = start(BUSY, *flags)
    assert child.ask("") == "6 0 0"
    plan = plan_redirects(child.functions({"old_one": "new_one"}), child.read)
    assert plan.way.tolist() == [Way.ENTRY]
    result = apply_redirects(plan, child)
    assert child.ask("") == "7 1 0"
    assert result.tries >= 1
    assert not overwritten(plan, child).any()
    undo_redirects(result, child)
    assert child.ask("") == "6 1 0"
    assert overwritten(plan, child).all()


def test_a_redirect_and_its_undo_again_and_again_under_eight_threads(start: Start) -> None:
    child = start(BUSY, "-O2")
    plan = plan_redirects(child.functions({"old_one": "new_one"}), child.read)
    for _ in range(6):
        undo_redirects(apply_redirects(plan, child), child)
    assert child.ask("") == "6 1 0"


def test_a_leading_endbr64_stays(start: Start) -> None:
    child = start(BUSY, "-O2", "-fcf-protection=full")
    table = child.functions({"old_one": "new_one"})
    plan = plan_redirects(table, child.read)
    entry = child.address("old_one")
    assert plan.addr.tolist() == [entry + 4]
    apply_redirects(plan, child)
    assert child.read(Addr(entry), 5).tobytes() == b"\xf3\x0f\x1e\xfa\xe9"


# A function of one byte with padding behind it, one without, and a loop back to byte 2.
SHAPES = """\t.text
	.globl main
	.p2align 4
	.type tiny, @function
tiny:	ret
	.size tiny, .-tiny
	.p2align 4
	.type tight, @function
tight:	ret
	.size tight, .-tight
	.type behind, @function
behind:	mov $2, %%eax
	ret
	.size behind, .-behind
	.p2align 4
	.type back, @function
back:	xor %%eax, %%eax
inner:	inc %%eax
	dec %%edi
	jg inner
	ret
	.size back, .-back
	.p2align 4
	.type indirect, @function
indirect: call *%%rax
	nopl 0(%%rax,%%rax,1)
	ret
	.size indirect, .-indirect
%s	.type new, @function
new:	mov $77, %%eax
	ret
	.size new, .-new
	.p2align 4
	.type main, @function
main:	push %%rbx
	lea ready(%%rip), %%rdi
	call puts@plt
	mov stdout@GOTPCREL(%%rip), %%rax
	mov (%%rax), %%rdi
	call fflush@plt
again:	call getchar@plt
	cmp $-1, %%eax
	je done
	mov $5, %%edi
	call back
	mov %%eax, %%ebx
	call tight
	lea format(%%rip), %%rdi
	mov %%ebx, %%esi
	mov %%eax, %%edx
	xor %%eax, %%eax
	call printf@plt
	mov stdout@GOTPCREL(%%rip), %%rax
	mov (%%rax), %%rdi
	call fflush@plt
skip:	call getchar@plt
	cmp $10, %%eax
	je again
	jmp again
done:	xor %%eax, %%eax
	pop %%rbx
	ret
	.size main, .-main
	.data
ready:	.string "ready"
format:	.string "%%d %%d\\n"
	.section .note.GNU-stack,"",@progbits
"""
ROOMY = SHAPES % "\t.p2align 4\n"


def test_a_one_byte_function_uses_the_padding_behind_it(start: Start) -> None:
    child = start(ROOMY)
    plan = plan_redirects(child.functions({"tiny": "new"}), child.read)
    assert plan.way.tolist() == [Way.ENTRY]
    assert plan.old[0, :5].tobytes()[:1] == b"\xc3"


def test_a_loop_back_into_the_first_bytes_goes_through_a_hole(start: Start) -> None:
    child = start(ROOMY)
    assert child.ask("x").split()[0] == "5"
    plan = plan_redirects(child.functions({"back": "new"}), child.read)
    assert sorted(plan.way.tolist()) == [Way.SHORT, Way.HOLE]
    result = apply_redirects(plan, child)
    assert child.ask("x").split()[0] == "77"
    undo_redirects(result, child)
    assert child.ask("x").split()[0] == "5"


def test_two_functions_never_share_a_hole(start: Start) -> None:
    child = start(ROOMY)
    plan = plan_redirects(
        child.functions({"back": "new", "indirect": "new", "tiny": "new"}), child.read
    )
    ends = plan.addr + plan.size
    assert (plan.addr[1:] >= ends[:-1]).all()
    assert plan.way.tolist().count(Way.HOLE) == 2


def test_a_call_that_returns_into_the_patch_forbids_the_long_jump(start: Start) -> None:
    child = start(ROOMY)
    plan = plan_redirects(child.functions({"indirect": "new"}), child.read)
    assert sorted(plan.way.tolist()) == [Way.SHORT, Way.HOLE]


def test_a_one_byte_function_without_room_names_the_reason(start: Start) -> None:
    child = start(ROOMY)
    with pytest.raises(NotRedirectableError) as caught:
        plan_redirects(child.functions({"tight": "new", "tiny": "new"}), child.read)
    where = child.address("tight")
    assert str(caught.value) == (
        "1 function of the running program cannot be sent to new code:\n"
        f"  tight ({where:#x}): its 1 bytes are too short for a jump of 5;"
        " no call of it is known\n"
        "Nothing was changed. Build with -O2 -falign-functions=16, which gives short functions"
        " room for a jump, and restart the program once."
    )


def test_the_calls_of_a_function_without_room_are_sent_to_the_stub(start: Start) -> None:
    child = start(ROOMY)
    before = child.ask("x").split()[1]
    table = child.functions({"tight": "new"})
    main = child.address("main")
    code = child.read(Addr(main), 80).tobytes()
    tight = child.address("tight")
    field = next(
        main + at + 1
        for at in range(70)
        if code[at] == 0xE8
        and main + at + 5 + int.from_bytes(code[at + 1 : at + 5], "little", signed=True)
        == tight
    )
    row = np.array(rows_of(table, ["tight"]), np.int32)
    sites = Places(np.array([field], np.uint64), row)
    with pytest.raises(NotRedirectableError, match="its address may be held elsewhere"):
        plan_redirects(table, child.read, sites)
    private = replace(table, address_taken=np.zeros(len(table.addr), np.bool_))
    plan = plan_redirects(private, child.read, sites)
    assert plan.way.tolist() == [Way.CALL]
    result = apply_redirects(plan, child)
    assert child.ask("x").split()[1] == "77"
    undo_redirects(result, child)
    assert child.ask("x").split()[1] == before


def test_a_cold_piece_is_never_redirected(start: Start) -> None:
    cold = "__attribute__((noipa)) int old_one(int n) { return n + 1; }"
    cold += 'int piece(int n) __asm__("old_one.cold"); int piece(int n) { return n * 3; }'
    child = start(ONE_THREAD % cold, "-O2")
    plan = plan_redirects(
        child.functions({"old_one.cold": "main", "old_one": "main"}), child.read
    )
    assert plan.addr.tolist() == [child.address("old_one")]
