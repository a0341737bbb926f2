"""x86-64 instructions that reach a variable by a 4-byte distance, for one that is farther away.

The displacement of `lea x(%rip), %reg` can become that of the load of a GOT entry, in place. A load needs
one instruction more than there is room for, so it becomes a jump to code of its own that ends with a jump back:
`mov x@GOTPCREL(%rip), %reg; mov (%reg), %reg`. It needs no other register and leaves the flags.
"""

from typing import Final

from reloader.arch.base import FarAccess
from reloader.arch.x86_64_kinds import kind

_GOTPCREL: Final = kind("GOTPCREL")
_LEA, _LOAD, _JUMP = 0x8D, 0x8B, 0xE9
_REX, _REX_W, _REX_R, _REX_B = 0x40, 0x08, 0x04, 0x01
_NOPS: Final = {6: b"\x90", 7: b"\x66\x90"}  # behind a jump of 5 bytes


def far_access(instruction: bytes) -> FarAccess | None:
    """Return another form of an instruction with a displacement as its last 4 bytes, or None."""
    opcode = instruction[-6:-5]
    prefix = instruction[:-6]
    if len(instruction) not in _NOPS or (prefix and prefix[0] & 0xF0 != _REX):
        return None
    rex = prefix[0] if prefix else 0
    wide = rex & _REX_W
    if opcode[0] == _LEA and wide:
        site = instruction[:-6] + bytes([_LOAD]) + instruction[-5:]
        return FarAccess(site, len(site) - 4, _GOTPCREL)
    if opcode[0] != _LOAD:
        return None
    modrm = instruction[-5]
    register = modrm >> 3 & 7
    # mov x@GOTPCREL(%rip), %reg
    thunk = bytes([_REX | _REX_W | (rex & _REX_R), _LOAD, modrm]) + bytes(4)
    got = len(thunk) - 4
    # mov 0(%reg), %reg: mod=01, so that rbp and r13 need no other form; rsp and r12 need a SIB
    base = _REX_B if rex & _REX_R else 0
    thunk += bytes(
        [_REX | wide | (rex & _REX_R) | base, _LOAD, 0x40 | register << 3 | register]
    )
    thunk += b"\x24\x00" if register == 4 else b"\x00"
    thunk += bytes([_JUMP]) + bytes(4)
    site = bytes([_JUMP]) + bytes(4) + _NOPS[len(instruction)]
    return FarAccess(site, 1, _GOTPCREL, thunk, got, len(thunk) - 4)
