"""Errors of redirecting: a function's entry cannot be, or cannot now be, turned into a jump."""

from collections.abc import Sequence
from dataclasses import dataclass

from reloader.errors.base import UNTOUCHED, RefusedError, ReloaderError

_SHOWN = 12  # refusals spelled out in one text; the rest is counted
_MORE_ROOM = (
    "Build with -O2 -falign-functions=16, which gives short functions room for a jump, and"
    " restart the program once."
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """One function that stays as it is, and why."""

    name: str
    addr: int
    reason: str

    def __str__(self) -> str:
        """Return the line that stands for this function in an error text."""
        return f"{self.name} ({self.addr:#x}): {self.reason}"


class NotRedirectableError(RefusedError):
    """Callers of some original functions cannot be sent to new code.

    Attributes:
        refusals: Every such function of the transaction.
    """

    code = "not-redirectable"

    def __init__(self, refusals: Sequence[Refusal], remedy: str = _MORE_ROOM) -> None:
        self.refusals = tuple(refusals)
        count = len(self.refusals)
        what = "1 function" if count == 1 else f"{count} functions"
        lines = [f"  {refusal}" for refusal in self.refusals[:_SHOWN]]
        if count > _SHOWN:
            lines.append(f"  and {count - _SHOWN} more")
        super().__init__(
            "\n".join(
                [
                    f"{what} of the running program cannot be sent to new code:",
                    *lines,
                    UNTOUCHED,
                ]
            )
            + f" {remedy}"
        )


class CodeChangedError(RefusedError):
    """The bytes to be patched are not those that were planned for.

    Attributes:
        name: The function.
        addr: The first byte that was compared.
        expected: What the plan says is there.
        found: What is there.
    """

    code = "code-changed"

    def __init__(self, name: str, addr: int, expected: bytes, found: bytes) -> None:
        self.name, self.addr, self.expected, self.found = name, addr, expected, found
        super().__init__(
            f"{name} at {addr:#x}: the program holds the bytes {found.hex(' ')}, expected"
            f" {expected.hex(' ')}. {UNTOUCHED} Something else writes this code: remove a"
            " debugger's breakpoint there, or stop the other patching tool."
        )


class PcInPatchError(ReloaderError):
    """A thread stood inside the bytes to be patched at every try.

    Attributes:
        name: The function.
        addr: The first byte to be patched.
        pc: The program counter that stood inside.
        tid: The thread, 0 if it is the return address of a signal frame.
        thread: Its name.
        tries: How often all threads were stopped.
    """

    code = "pc-in-patch"

    def __init__(  # noqa: PLR0913  one typed field a fact of the text
        self, name: str, addr: int, pc: int, *, tid: int, thread: str, tries: int
    ) -> None:
        self.name, self.addr, self.pc = name, addr, pc
        self.tid, self.thread, self.tries = tid, thread, tries
        who = f"thread {thread} ({tid})" if tid else "a thread interrupted by a signal"
        super().__init__(
            f"{name}: {who} stands at {pc:#x}, inside the bytes from {addr:#x} that a jump has"
            f" to replace, at each of {tries} stops. {UNTOUCHED} Save the file again to try"
            " once more, or let the program leave this function first."
        )
