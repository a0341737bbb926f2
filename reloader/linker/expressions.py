"""The check language of llvm-jitlink and llvm-rtdyld: what is true of linked memory.

    check   := expr "=" expr
    expr    := simple (binop simple)*        left to right, no precedence: + - & | << >>
    simple  := ("(" expr ")" | "*{" n "}" expr | name | number) ["[" high ":" low "]"]
    name    := symbol | decode_operand(symbol [+ n], n) | next_pc(symbol)
             | stub_addr(file, symbol [, kind]) | got_addr(file, symbol)
             | section_addr(file, section)

Numbers are unsigned and wrap at 64 bits. A load takes a whole expression, so `*{4}a+4` reads at
a + 4. No space may follow a number where an operator is to come: `x + 1` is an expression,
`1 + x` is not. These are the language's own rules, kept so that LLVM's tests mean here what
they mean there. Inside a load a name is where the linker has the bytes, outside where they will
be.
"""

from collections.abc import Callable
from typing import Final, Protocol

from reloader.errors.linker import ExpressionError

_MASK: Final = (1 << 64) - 1
_WORD: Final = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:_.$")
_DIGITS: Final = frozenset("0123456789")
_HEX: Final = frozenset("0123456789abcdefABCDEF")
_WIDEST: Final = 8  # bytes of a load
_OPERATORS: Final[dict[str, Callable[[int, int], int]]] = {
    "<<": lambda a, b: a << b if b < 64 else 0,
    ">>": lambda a, b: a >> b if b < 64 else 0,
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
}


class Facts(Protocol):
    """What was linked; unknown names raise ExpressionError with the text for people."""

    def symbol(self, name: str, *, inside: bool) -> int | None:
        """Return a symbol's address, None for an unknown one."""
        ...

    def operand(self, name: str, offset: int, index: int) -> int:
        """Return an immediate operand of the instruction at symbol + offset."""
        ...

    def instruction_size(self, name: str) -> int:
        """Return the bytes of the instruction at a symbol."""
        ...

    def stub(self, file: str, name: str, kind: str, *, inside: bool) -> int:
        """Return the address of a symbol's stub."""
        ...

    def got(self, file: str, name: str, *, inside: bool) -> int:
        """Return the address of a symbol's GOT entry."""
        ...

    def section(self, file: str, name: str, *, inside: bool) -> int:
        """Return the address of a section."""
        ...

    def load(self, addr: int, size: int) -> int:
        """Return a number in memory."""
        ...


def check(text: str, facts: Facts) -> str:
    """Return why a check does not hold, "" if it does."""
    text = text.strip()
    left, equals, right = text.partition("=")
    try:
        if not equals:
            return f"Error evaluating expression '{text}': it has no '='"
        sides = [evaluate(side.strip(), facts) for side in (left, right)]
    except ExpressionError as error:
        return f"Error evaluating expression '{text}': {error}"
    if sides[0] != sides[1]:
        return f"Expression '{text}' is false: {sides[0]:#x} != {sides[1]:#x}"
    return ""


def evaluate(text: str, facts: Facts) -> int:
    """Return the value of an expression.

    Raises:
        ExpressionError: It cannot be read, or names something unknown.
    """
    reader = _Reader(text, facts)
    value = reader.expression(inside=False)
    if reader.rest:
        raise reader.unexpected(text)
    return value


class _Reader:
    """One expression, read from left to right; `rest` is what is not read yet."""

    def __init__(self, text: str, facts: Facts) -> None:
        self.rest = text
        self._facts = facts

    def expression(self, *, inside: bool) -> int:
        value = self._simple(inside=inside)
        while operator := next((op for op in _OPERATORS if self.rest.startswith(op)), ""):
            self._skip(len(operator))
            value = _OPERATORS[operator](value, self._simple(inside=inside)) & _MASK
        return value

    def unexpected(self, within: str, wanted: str = "") -> ExpressionError:
        text = f"Encountered unexpected token '{self._token()}"
        text += f"' while parsing subexpression '{within}'" if within else "'"
        return ExpressionError(f"{text} {wanted}" if wanted else text)

    def _simple(self, *, inside: bool) -> int:
        first = self.rest[:1]
        if not first:
            message = "Unexpected end of expression"
            raise ExpressionError(message)
        if first == "(":
            value = self._parentheses(inside=inside)
        elif first == "*":
            value = self._load()
        elif (first.isascii() and first.isalpha()) or first == "_":
            value = self._name(inside=inside)
        elif first in _DIGITS:
            value = self._number()
        else:
            raise self.unexpected(self.rest, "expected '(', '*', identifier, or number")
        return self._slice(value) if self.rest.startswith("[") else value

    def _parentheses(self, *, inside: bool) -> int:
        start = self.rest
        self._skip(1)
        value = self.expression(inside=inside)
        self._expect(")", start)
        return value

    def _load(self) -> int:
        self._skip(1)
        if not self.rest.startswith("{"):
            message = "Expected '{' following '*'."
            raise ExpressionError(message)
        self._skip(1)
        size = self._number()
        if not 1 <= size <= _WIDEST:
            message = "Invalid size for dereference."
            raise ExpressionError(message)
        if not self.rest.startswith("}"):
            message = "Missing '}' for dereference."
            raise ExpressionError(message)
        self._skip(1)
        addr = self.expression(inside=True)
        return self._facts.load(addr, size) if addr else 0

    def _slice(self, value: int) -> int:
        self._skip(1)
        high = self._number()
        self._expect(":", self.rest)
        low = self._number()
        self._expect("]", self.rest)
        if high < low or high >= 64:
            message = f"Invalid bit range [{high}:{low}]"
            raise ExpressionError(message)
        return (value >> low) & ((1 << (high - low + 1)) - 1)

    def _name(self, *, inside: bool) -> int:
        name = self._word()
        builtin = {
            "decode_operand": self._operand,
            "next_pc": self._next_pc,
            "stub_addr": self._stub,
            "got_addr": self._got,
            "section_addr": self._section,
        }.get(name)
        if builtin is not None:
            return builtin(inside)
        value = self._facts.symbol(name, inside=inside)
        if value is None:
            hint = " (an assembler's local label? drop the 'L')" if name[0] == "L" else ""
            message = f"No known address for symbol '{name}'{hint}"
            raise ExpressionError(message)
        return value

    def _operand(self, _inside: bool) -> int:  # noqa: FBT001 - one signature for all builtins
        self._expect("(", self.rest)
        name, offset = self._known(), 0
        if self.rest.startswith("+"):
            self._skip(1)
            offset = self._number()
        elif self.rest[:1] in {"-", "&", "|", "<", ">"}:
            raise self.unexpected(self.rest, "expected '+' for offset or ',' if no offset")
        self._expect(",", self.rest)
        index = self._number()
        self._expect(")", self.rest)
        return self._facts.operand(name, offset, index) & _MASK

    def _next_pc(self, inside: bool) -> int:  # noqa: FBT001 - as above
        self._expect("(", self.rest)
        name = self._known()
        self._expect(")", self.rest)
        addr = self._facts.symbol(name, inside=inside) or 0
        return addr + self._facts.instruction_size(name)

    def _stub(self, inside: bool) -> int:  # noqa: FBT001 - as above
        file, name, kind = self._file_and_symbol()
        return self._facts.stub(file, name, kind, inside=inside)

    def _got(self, inside: bool) -> int:  # noqa: FBT001 - as above
        file, name, _ = self._file_and_symbol()
        return self._facts.got(file, name, inside=inside)

    def _section(self, inside: bool) -> int:  # noqa: FBT001 - as above
        start = self.rest
        self._expect("(", start)
        file = self._until(",", start)
        section = self._until(")", start)
        return self._facts.section(file, section, inside=inside)

    def _file_and_symbol(self) -> tuple[str, str, str]:
        start = self.rest
        self._expect("(", start)
        file = self._until(",", start)  # may hold what no symbol holds
        name, kind = self._word(), ""
        if self.rest.startswith(","):
            self._skip(1)
            kind = self.rest.partition(")")[0]
            self._skip(len(kind))
        self._expect(")", start)
        return file, name, kind.strip()

    def _known(self) -> str:
        """Read the symbol that stands for an instruction."""
        name = self._word()
        if self._facts.symbol(name, inside=False) is None:
            message = f"Cannot decode unknown symbol '{name}'"
            raise ExpressionError(message)
        return name

    def _word(self) -> str:
        size = _span(self.rest, _WORD)
        word = self.rest[:size]
        self._skip(size)
        return word

    def _number(self) -> int:
        text = self._digits()
        if not text:
            raise self.unexpected(self.rest, "expected number")
        self.rest = self.rest[len(text) :]  # no space is skipped here
        octal = len(text) > 1 and text[0] == "0" and not text.startswith("0x")
        try:
            value = int(text, 8 if octal else 0)
        except ValueError:
            value = _MASK + 1
        if value > _MASK:
            message = f"'{text}' is not a number of 64 bits"
            raise ExpressionError(message)
        return value

    def _digits(self) -> str:
        if self.rest.startswith("0x"):
            return self.rest[: 2 + _span(self.rest[2:], _HEX)]
        return self.rest[: _span(self.rest, _DIGITS)]

    def _token(self) -> str:
        if not self.rest:
            return ""
        if self.rest[0].isalpha():
            return self.rest[: _span(self.rest, _WORD)]
        if self.rest[0] in _DIGITS:
            return self._digits()
        return self.rest[: 2 if self.rest.startswith(("<<", ">>")) else 1]

    def _until(self, mark: str, within: str) -> str:
        text, _, _ = self.rest.partition(mark)
        self._skip(len(text))
        self._expect(mark, within)
        return text.rstrip()

    def _expect(self, mark: str, within: str) -> None:
        if not self.rest.startswith(mark):
            raise self.unexpected(within, f"expected '{mark}'")
        self._skip(1)

    def _skip(self, size: int) -> None:
        self.rest = self.rest[size:].lstrip()


def _span(text: str, among: frozenset[str]) -> int:
    """Return how many characters from the start are of a kind."""
    return next((at for at, letter in enumerate(text) if letter not in among), len(text))
