"""x86-64: the functions that a C library leaves to the linker (libc_nonshared.a).

Each passes its object's `__dso_handle` on, so that what an object registers can be undone when
the object goes. They are tail calls: nothing of theirs is on a stack, so they need no unwind
table.
"""

from typing import Final

from reloader.arch.base import Shim
from reloader.arch.x86_64_kinds import kind

_PC32, _PLT32 = kind("PC32"), kind("PLT32")
_HANDLE: Final = b"__dso_handle"


def _shim(code: str, handle: int | None, jump: int, target: bytes) -> Shim:
    """Return a shim whose fields are the handle's displacement and that of the last jump."""
    fields = [(jump, _PLT32, target)]
    if handle is not None:
        fields.insert(0, (handle, _PC32, _HANDLE))
    return Shim(bytes.fromhex(code), tuple(fields))


_FORK: Final = _shim(
    "f30f1efa 488d0d00000000"  # endbr64; lea __dso_handle(%rip), %rcx
    "e900000000",  # jmp __register_atfork(prepare, parent, child, handle)
    7, 12, b"__register_atfork",
)  # fmt: skip
FAR_JUMP: Final = Shim(
    bytes.fromhex("f30f1efa ff2500000000"),  # endbr64; jmp *entry(%rip)
    ((6, kind("GOTPCREL"), b""),),
)
SHIMS: Final = {
    b"atexit": _shim(
        "f30f1efa 31f6 488d1500000000"  # endbr64; xor %esi, %esi; lea __dso_handle(%rip), %rdx
        "e900000000",  # jmp __cxa_atexit(function, NULL, handle)
        9, 14, b"__cxa_atexit",
    ),
    b"at_quick_exit": _shim(
        "f30f1efa 488d3500000000"  # endbr64; lea __dso_handle(%rip), %rsi
        "e900000000",  # jmp __cxa_at_quick_exit(function, handle)
        7, 12, b"__cxa_at_quick_exit",
    ),
    b"pthread_atfork": _FORK,
    b"__pthread_atfork": _FORK,
    b"__stack_chk_fail_local": _shim("f30f1efa e900000000", None, 5, b"__stack_chk_fail"),
}  # fmt: skip
