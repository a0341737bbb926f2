"""What a reload did, as the history, the client and the terminal tell it."""

from dataclasses import dataclass, field
from typing import Literal

State = Literal["live", "unchanged", "refused", "failed"]


@dataclass(slots=True)
class Outcome:
    """One transaction's result; times in milliseconds unless the name says otherwise."""

    state: State
    generation: int = 0  # 0: none was made
    objects: list[str] = field(default_factory=list[str])  # as shown to people
    functions: list[str] = field(default_factory=list[str])  # changed or new
    new_variables: list[str] = field(default_factory=list[str])
    notes: list[str] = field(
        default_factory=list[str]
    )  # what the user should know though it worked
    active: list[str] = field(
        default_factory=list[str]
    )  # changed functions that a thread is inside of
    error: str = ""  # the whole text, for refused and failed
    code: str = ""  # stable word of the error
    bytes_loaded: int = 0
    total_ms: float = 0.0  # file event to live
    stop_us: float = (
        0.0  # how long threads were stopped on the road to live; 0 after an object's first
    )
    steps_ms: dict[str, float] = field(default_factory=dict[str, float])
    build: str = ""  # the output of a failed build

    def line(self) -> str:
        """Return the one sentence that a terminal shows."""
        what = ", ".join(short(name) for name in self.objects) or "nothing"
        if self.state in {"refused", "failed"}:
            return f"{what} {self.state}: {self.error}"
        if self.state == "unchanged":
            return f"{what} unchanged: the code that runs is the same"
        text = (
            f"{what} {self.state}: {count_functions(self.functions)} in {self.total_ms:.1f} ms"
        )
        if self.new_variables:
            text += f", new: {', '.join(self.new_variables[:4])}"
        if self.stop_us:
            text += f", stopped {self.stop_us:.0f} us"
        return "\n".join([text, *(f"  {note}" for note in self.notes)])


def short(name: str) -> str:
    """Return an object's name without its folders: `hud.o`, `libgame.a(hud.o)`."""
    path, bracket, member = name.partition("(")
    return path.rsplit("/", 1)[-1] + bracket + member


def count_functions(names: list[str]) -> str:
    """Return `draw`, or `draw, score (2 functions)`, or the first few and the count."""
    if not names:
        return "data only"
    if len(names) == 1:
        return names[0]
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"{shown} ({len(names)} functions)"
