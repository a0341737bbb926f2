"""One thing that compilers do with C, as an object in two versions."""

from dataclasses import dataclass

Answers = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Feature:
    """One object in two versions."""

    name: str
    text: str
    edits: tuple[tuple[str, str], ...]
    before: Answers
    after: Answers
    back: Answers = ()  # where they differ from `before`, since something was kept

    def second(self) -> str:
        """Return the text of the second version."""
        text = self.text
        for old, new in self.edits:
            assert text.count(old) == 1, (self.name, old, text.count(old))
            text = text.replace(old, new)
        return text


NOINLINE = "#define NOINLINE __attribute__((noinline))\n"
