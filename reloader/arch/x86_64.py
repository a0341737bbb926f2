"""x86-64: stub and entry jump, how to tell a branch from an operand; its kinds stand beside."""

from typing import Final

import numpy as np

from reloader.arch import x86_64_far, x86_64_lengths, x86_64_rewrite
from reloader.arch.base import FarAccess, Rewritten
from reloader.arch.x86_64_kinds import KINDS, NUMBERS, kind
from reloader.arch.x86_64_shims import FAR_JUMP, SHIMS
from reloader.errors.linking import FixupRangeError, RangeRow
from reloader.ids import I64, U8, U64, Bool

_STUB: Final = np.frombuffer(
    bytes.fromhex(
        "f30f1efa"  # endbr64              an indirect call lands here under CET
        "ff2500000000"  # jmp *slot(%rip)
        "cccccccccccc"  # int3
    ),
    np.uint8,
)
_STUB_FIELD: Final = 6  # of the displacement in the stub
_STUB_NEXT: Final = 10  # the program counter the displacement counts from


def _fits32(distance: I64) -> Bool:
    return distance == distance.astype(np.int32)


class X86_64:  # noqa: N801  the architecture's own name
    """The Architecture protocol for x86-64."""

    name: str = "x86-64"
    machine: int = 62  # EM_X86_64
    kinds = KINDS
    kind_of_number = NUMBERS
    shims = SHIMS
    far_jump = FAR_JUMP
    stub_size: int = 16
    trap: bytes = b"\xcc"  # int3
    capstone: tuple[int, int] = (3, 8)  # CS_ARCH_X86, CS_MODE_64
    pc32: int = kind("PC32")
    word: int = kind("64")
    thread_word: int = kind("TPOFF64")
    far_kinds: tuple[int, ...] = x86_64_far.FAR_KINDS

    def write_stubs(self, stubs: U8, stub_addr: U64, slot_addr: U64) -> None:
        """Write (n, 16) `endbr64; jmp *slot(%rip)`, padded with int3.

        Raises:
            FixupRangeError: A slot is beyond the reach of its stub; nothing is written.
        """
        distance = (slot_addr - (stub_addr + np.uint64(_STUB_NEXT))).view(np.int64)
        far = np.flatnonzero(~_fits32(distance))
        if len(far):
            rows = [_far("stub", int(stub_addr[i]), int(distance[i])) for i in far]
            raise FixupRangeError(rows)
        stubs[:] = _STUB
        field = distance.astype("<i4").view(np.uint8).reshape(-1, 4)
        stubs[:, _STUB_FIELD:_STUB_NEXT] = field

    def is_branch(self, content: U8, field: I64) -> Bool:
        """Return (e,) whether the field at a content offset belongs to a call, jmp or jcc.

        The byte before a pc-relative operand's displacement is a ModRM with mod=00, rm=101,
        thus one of 05, 0d, ..., 3d, so `e8`, `e9` and `0f 8x` are never anything but a
        branch.
        """
        before = content[np.maximum(field - 1, 0)]
        escape = content[np.maximum(field - 2, 0)]
        near = (before & np.uint8(0xFE)) == 0xE8  # e8 call rel32, e9 jmp rel32
        jcc = (escape == 0x0F) & ((before & np.uint8(0xF0)) == 0x80)  # 0f 80..8f jcc rel32
        return (near & (field >= 1)) | (jcc & (field >= 2))

    def is_lea(self, content: U8, field: I64) -> Bool:
        """Return (e,) whether the field is the displacement of `lea disp(%rip), %reg`."""
        modrm = content[np.maximum(field - 1, 0)]
        opcode = content[np.maximum(field - 2, 0)]
        return (opcode == 0x8D) & ((modrm & np.uint8(0xC7)) == 0x05) & (field >= 2)

    def ends_instruction(self, content: U8, field: I64) -> Bool:
        """Return (e,) whether a branch, `lea` or `mov` ends with this relocated field.

        None of 89, 8b and 8d has an immediate after its displacement, in any opcode map.
        """
        modrm = content[np.maximum(field - 1, 0)]
        opcode = content[np.maximum(field - 2, 0)]
        moves = (opcode == 0x89) | (opcode == 0x8B) | (opcode == 0x8D)
        moves &= ((modrm & np.uint8(0xC7)) == 0x05) & (field >= 2)
        return moves | self.is_branch(content, field)

    def lea_fields(self, content: U8) -> I64:
        """Return every place in content that looks like the field of `lea disp(%rip), %reg`."""
        field = np.flatnonzero(content[: max(len(content) - 5, 0)] == 0x8D) + 2
        return field[(content[field - 1] & np.uint8(0xC7)) == 0x05]

    def instruction_lengths(self, code: U8) -> U8:
        """Return (n,) the length of an instruction that begins at each byte."""
        return x86_64_lengths.instruction_lengths(code)

    def rewrite_thread_local(self, content: U8, field: I64, table: U8) -> Rewritten:
        """Turn general-dynamic, local-dynamic and TLSDESC sequences into local-exec ones."""
        return x86_64_rewrite.thread_local(content, field, table)

    def plan_got(self, content: U8, field: I64) -> Rewritten:
        """Say what `mov`, `call *` and `jmp *` through a GOT entry would become without it."""
        return x86_64_rewrite.plan_got(content, field)

    def rewrite_got(self, content: U8, field: I64) -> None:
        """Do what `plan_got` said, for fields that it knows."""
        x86_64_rewrite.rewrite_got(content, field)

    def far_access(self, instruction: bytes, field: int) -> FarAccess | None:
        """Return an instruction in a form that goes through the GOT, or None."""
        return x86_64_far.far_access(instruction, field)


def _far(what: str, addr: int, distance: int) -> RangeRow:
    return RangeRow.of_jump(what, addr, distance)
