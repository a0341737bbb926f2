"""The check language: what an expression is worth, and what is said of a wrong one."""

from pathlib import Path

import pytest

from reloader.arch.x86_64 import X86_64
from reloader.errors.linker import CheckFailedError, ExpressionError, InputError, NoChecksError
from reloader.linker.checking import checks_in, run_checks
from reloader.linker.expressions import check, evaluate
from reloader.linker.operands import decode


class Fixed:
    """Facts: `a` is at 0x1000 and holds 0x8877665544332211; `zero` is at 0."""

    def symbol(self, name: str, *, inside: bool) -> int | None:
        """Inside a load `a` is 0x10 further on: where the linker has it."""
        return {"a": 0x1010 if inside else 0x1000, "zero": 0, "_b.c$:9": 7}.get(name)

    def operand(self, name: str, offset: int, index: int) -> int:
        return {"a": 100, "_b.c$:9": -1}[name] + offset * 10 + index

    def instruction_size(self, name: str) -> int:
        return len(name)

    def stub(self, file: str, name: str, kind: str, *, inside: bool) -> int:
        return hash_of(file, name, kind) + inside

    def got(self, file: str, name: str, *, inside: bool) -> int:
        return hash_of(file, name, "got") + inside

    def section(self, file: str, name: str, *, inside: bool) -> int:
        return hash_of(file, name, "section") + inside

    def load(self, addr: int, size: int) -> int:
        data = (0x8877665544332211).to_bytes(8, "little") + bytes(8)
        return int.from_bytes(data[addr - 0x1010 :][:size], "little")


def hash_of(*words: str) -> int:
    return sum(map(ord, "".join(words)))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0x1F", 31),
        ("17", 17),
        ("010", 8),
        ("a", 0x1000),
        ("_b.c$:9", 7),
        ("a + 1- 2", 0xFFF),
        ("a - 1+ 2", 0x1001),  # from left to right
        ("a +1<<4", 0x10010),  # without precedence
        ("a - a - 1", (1 << 64) - 1),  # wraps
        ("a & 0xff00| 0x3", 0x1003),
        ("a >> 4", 0x100),
        ("a << 100", 0),
        ("(a - (a - 5))", 5),
        ("*{1}a", 0x11),
        ("*{8}a", 0x8877665544332211),
        ("*{ 2}a+1", 0x3322),  # the load takes the whole expression
        ("(*{2}a) + 1", 0x2212),
        ("*{4}zero", 0),
        ("a[15:12]", 1),
        ("a[63:0]", 0x1000),
        ("(a + 0xff)[7:0]", 0xFF),
        ("decode_operand(a, 4)", 104),
        ("decode_operand(a+7, 4)", 174),
        ("decode_operand(a + 7, 4)", 174),
        ("decode_operand(_b.c$:9, 0)", (1 << 64) - 1),
        ("next_pc(a)", 0x1001),
        ("*{1}next_pc(a)", 0x22),
        ("stub_addr(x y.o, a)", hash_of("x y.o", "a")),
        ("stub_addr(x.o, a, plt)", hash_of("x.o", "a", "plt")),
        ("got_addr(x.o, a)", hash_of("x.o", "a", "got")),
        ("section_addr(x.o, .text.alt) + 16", hash_of("x.o", ".text.alt", "section") + 16),
    ],
)
def test_an_expression_has_its_value(text: str, value: int) -> None:
    assert evaluate(text, Fixed()) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Unexpected end of expression"),
        ("a +", "Unexpected end of expression"),
        ("1 + a", "Encountered unexpected token ' ' while parsing subexpression '1 + a'"),
        ("a ! 1", "Encountered unexpected token '!' while parsing subexpression 'a ! 1'"),
        ("!a", "token '!' while parsing subexpression '!a' expected '(', '*', identifier"),
        ("(a", "Encountered unexpected token '' while parsing subexpression '(a' expected ')'"),
        ("nothing", "No known address for symbol 'nothing'"),
        ("Lc", "No known address for symbol 'Lc' (an assembler's local label? drop the 'L')"),
        ("*a", "Expected '{' following '*'."),
        ("*{9}a", "Invalid size for dereference."),
        ("*{0}a", "Invalid size for dereference."),
        ("*{4 }a", "Missing '}' for dereference."),
        (
            "*{x}a",
            "Encountered unexpected token 'x' while parsing subexpression 'x}a' expected",
        ),
        ("a[3:7]", "Invalid bit range [3:7]"),
        ("a[7]", "expected ':'"),
        ("a[7:0", "expected ']'"),
        ("decode_operand(nothing, 0)", "Cannot decode unknown symbol 'nothing'"),
        ("decode_operand(a - 1, 0)", "expected '+' for offset or ',' if no offset"),
        ("decode_operand(a, b)", "expected number"),
        ("decode_operand a", "expected '('"),
        ("next_pc(nothing)", "Cannot decode unknown symbol 'nothing'"),
        ("got_addr(x.o)", "expected ','"),
        ("08", "'08' is not a number of 64 bits"),
        ("0x10000000000000000", "'0x10000000000000000' is not a number of 64 bits"),
    ],
)
def test_a_wrong_expression_says_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(ExpressionError) as error:
        evaluate(text, Fixed())
    assert why in str(error.value)


def test_a_check_holds_or_shows_both_sides() -> None:
    assert check(" a = 0x1000 ", Fixed()) == ""
    assert check("a = 0xfff", Fixed()) == "Expression 'a = 0xfff' is false: 0x1000 != 0xfff"
    told = "Error evaluating expression 'b = 1': No known address for symbol 'b'"
    assert check("b = 1", Fixed()) == told
    assert check("a", Fixed()) == "Error evaluating expression 'a': it has no '='"


def test_checks_are_lines_of_the_prefix_joined_by_backslashes() -> None:
    text = (
        "# jitlink-check: a = 1\n"
        "  # jitlink-check: b = \\\n"
        "# jitlink-check:   2\n"
        "# other-check: c = 3\n"
        "#jitlink-check: d = 4\n"
        "# jitlink-check: e = \\\n"
        "nothing that belongs to it\n"
        "# jitlink-check: f = 6\n"
    )
    assert checks_in(text, "jitlink-check") == [" a = 1", " b =    2", " e = ", " f = 6"]
    assert checks_in(text, "other-check") == [" c = 3"]


def test_all_checks_that_fail_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "checks.txt"
    file.write_text("# x: a = 1\n# x: a = 0x1000\n# x: b = 2\n")
    with pytest.raises(CheckFailedError) as error:
        run_checks(file, "x", Fixed())
    assert str(error.value) == (
        f"{file}: 2 of 3 checks failed:\n"
        "  Expression 'a = 1' is false: 0x1000 != 0x1\n"
        "  Error evaluating expression 'b = 2': No known address for symbol 'b'"
    )


def test_a_file_without_checks_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "checks.txt"
    file.write_text("# y: a = 0x1000\n")
    with pytest.raises(NoChecksError) as error:
        run_checks(file, "x", Fixed())
    told = f"{file}: no line begins with `# x:`. Name the prefix with --check-name."
    assert str(error.value) == told
    with pytest.raises(InputError, match="cannot be read: No such file"):
        run_checks(tmp_path / "none.txt", "x", Fixed())


R = None  # a register


@pytest.mark.parametrize(
    ("code", "operands"),
    [
        ("48 8b 05 10 00 00 00", (R, R, 1, R, 0x10, R)),  # mov 0x10(%rip), %rax
        ("48 c7 05 10 00 00 00 05 00 00 00", (R, 1, R, 0x10, R, 5)),  # movq $5, 0x10(%rip)
        ("e8 fb ff ff ff", (-5,)),  # call
        ("67 e8 01 00 00 00", (1,)),  # addr32 call
        ("0f 85 02 00 00 00", (2, 5)),  # jne
        ("48 b8 08 07 06 05 04 03 02 01", (R, 0x0102030405060708)),  # movabs
        ("05 44 33 22 11", (0x11223344,)),  # add $imm, %eax
        ("b8 ff ff ff ff", (R, 0xFFFFFFFF)),  # mov $-1, %eax
        ("48 c7 c0 ff ff ff ff", (R, -1)),  # mov $-1, %rax
        ("66 81 e5 ed fb", (R, R, 0xFBED)),  # and $.., %bp
        ("83 c1 fe", (R, R, -2)),  # add $-2, %ecx
        ("48 0f 45 48 04", (R, R, R, 1, R, 4, R, 5)),  # cmovne 4(%rax), %rcx
        ("66 0f 70 c8 f0", (R, R, 0xF0)),  # pshufd
        ("f2 0f 58 48 04", (R, R, R, 1, R, 4, R)),  # addsd 4(%rax), %xmm1
        ("48 a1 08 07 06 05 04 03 02 01", (0x0102030405060708, R)),  # movabs 0x.., %rax
        ("c8 10 00 01", (16, 1)),  # enter
        ("f3 48 ab", (R,)),  # rep stosq
        ("c3", ()),  # ret
    ],
)
def test_operands_are_numbered_as_llvm_does(
    code: str, operands: tuple[int | None, ...]
) -> None:
    found = decode(bytes.fromhex(code), X86_64())
    assert found is not None
    assert (found.size, found.operands) == (len(bytes.fromhex(code)), operands)


def test_bytes_that_are_no_instruction_have_no_operands() -> None:
    assert decode(b"\x06", X86_64()) is None
    assert decode(b"", X86_64()) is None
