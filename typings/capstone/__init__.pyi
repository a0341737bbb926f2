from collections.abc import Iterator

CS_ARCH_X86: int
CS_GRP_BRANCH_RELATIVE: int
CS_AC_WRITE: int
CS_AC_READ: int
CS_MODE_64: int

class Cs:
    def __init__(self, arch: int, mode: int) -> None: ...
    def disasm_lite(
        self, code: bytes, offset: int, count: int = 0
    ) -> Iterator[tuple[int, int, str, str]]: ...
