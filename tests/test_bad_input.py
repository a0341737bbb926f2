"""Bad input against a live program: a clear text, nothing changed, the next reload works."""

import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reloader.elf.read import read_object
from reloader.session.outcome import Outcome
from reloader.session.session import Session
from tests.support.elf import compiled, replaced
from tests.support.faults import books, check_consistency
from tests.support.road import MAIN, Program, attached

ROOT = Path(__file__).resolve().parent.parent
UNTOUCHED = "Nothing was changed."
PART = """
static int count;
extern int printf(const char *, ...);
int answer(int n) { count++; if (n < 0) printf("text"); return n * %d + count; }
"""


class Live:
    """A program under a session, and which version of it runs."""

    def __init__(self, program: Program, session: Session) -> None:
        self.program, self.session = program, session
        self.times, self.count = 10, 0
        self.object = program.folder / "part.o"

    def ask(self, n: int = 3) -> None:
        """Check that the program runs on as it did."""
        self.count += 1
        assert self.program.ask(n) == n * self.times + self.count

    def good(self) -> bytes:
        """Return a version that would load."""
        (path,) = self.program.compile(part=PART % (self.times + 1))
        return path.read_bytes()

    def refused(self, data: bytes, path: Path | None = None) -> Outcome:
        """Load bytes that are refused; check that nothing happened, and that the next works."""
        self.ask()
        before = books(self.session)
        rows = len(self.session.store.query.history(self.session.target, limit=1000))
        outcome = self.session.reload_contents(
            [(str(path or self.object), data)], 0.0, named=True
        )
        assert outcome.state == "refused", outcome
        assert UNTOUCHED in outcome.error
        assert books(self.session) == before
        history = self.session.store.query.history(self.session.target, limit=1000)
        assert len(history) == rows + 1
        assert (history[0].state, history[0].error) == ("refused", outcome.error)
        self.ask()
        self.works()
        return outcome

    def works(self) -> None:
        """Reload a good version."""
        data = self.good()
        outcome = self.session.reload_contents([(str(self.object), data)], 0.0)
        assert outcome.error == ""
        self.times += 1
        self.ask()
        check_consistency(self.session)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    program = Program(tmp_path_factory.mktemp("live"), ["-O2", "-falign-functions=16"])
    program.compile(main=MAIN, part=PART % 10)
    program.link()
    program.start()
    with attached(program) as session:
        yield Live(program, session)
    assert program.stop() == 0


def has(outcome: Outcome, *words: str) -> None:
    for word in words:
        assert word in outcome.error


def section_field(data: bytes, name: bytes, field: int) -> int:
    """Return where a field of a section's header is in the file."""
    found = read_object("/p/part.o", data)
    return (
        int.from_bytes(data[0x28:0x30], "little") + 64 * found.section_names.index(name) + field
    )


def first_record(data: bytes, name: bytes) -> int:
    """Return where a section's bytes are in the file."""
    found = read_object("/p/part.o", data)
    return int(found.sections["sh_offset"][found.section_names.index(name)])


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def past_the_end(data: bytes) -> bytes:
    return replaced(data, section_field(data, b".text", 0x18), 0x7FFF_0000, 8)


def relocation_past_its_section(data: bytes) -> bytes:
    return replaced(data, first_record(data, b".rela.text"), 0x5000, 8)


def symbol_out_of_range(data: bytes) -> bytes:
    return replaced(data, first_record(data, b".rela.text") + 12, 0x4242, 4)


def unknown_type(data: bytes) -> bytes:
    return replaced(data, first_record(data, b".rela.text") + 8, 0xC8, 4)


def big_endian(data: bytes) -> bytes:
    return replaced(data, 5, 2, 1)


def narrow(data: bytes) -> bytes:
    return replaced(data, 4, 1, 1)


def other_machine(data: bytes) -> bytes:
    return replaced(data, 0x12, 183, 2)


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str, tuple[str, ...]]] = {
    "truncated": (cut, "truncated", ("part.o", "ends at", "build it again")),
    "empty": (lambda _: b"", "empty-file", ("part.o: the file is empty",)),
    "not elf": (lambda _: b"int main;\n" * 20, "not-elf", ("part.o", "69 6e 74 20")),
    "big-endian": (big_endian, "foreign-object", ("part.o", "big-endian")),
    "32-bit": (narrow, "foreign-object", ("part.o", "is 32", "is 64")),
    "other machine": (other_machine, "foreign-object", ("part.o", "is 183", "is 62")),
    "section past the end": (past_the_end, "truncated", ("section 1", "0x7fff00", "ends at")),
    "relocation past its section": (
        relocation_past_its_section, "bad-relocation", (".text+0x5000", "past the section"),
    ),
    "symbol out of range": (symbol_out_of_range, "bad-index", ("16962",)),
    "unknown relocation": (unknown_type, "unknown-relocation", ("part.o", ".text+", "200")),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_object_is_refused(live: Live, what: str) -> None:
    damage, code, words = DAMAGE[what]
    outcome = live.refused(damage(live.good()))
    assert outcome.code == code, outcome.error
    has(outcome, *words)


@pytest.mark.parametrize("flags", [("-shared", "-fPIC"), ()], ids=["shared", "executable"])
def test_what_is_linked_already_is_refused(live: Live, flags: tuple[str, ...]) -> None:
    source = live.program.folder / "linked.c"
    source.write_text("int answer(int n) { return n; } int main(void) { return 0; }")
    out = source.with_suffix(".so")
    subprocess.run(["/usr/bin/gcc", *flags, str(source), "-o", str(out)], check=True)
    outcome = live.refused(out.read_bytes())
    assert outcome.code == "not-relocatable"
    has(outcome, "part.o", "shared object", "-c")


def test_a_slim_lto_object_is_refused(live: Live) -> None:
    data = compiled(live.program.folder, PART % 3, "-O2", "-flto", "-fno-fat-lto-objects")
    outcome = live.refused(data)
    assert outcome.code == "slim-lto"
    has(outcome, "part.o", "without -flto")


def test_an_undefined_symbol_is_refused_with_its_place(live: Live) -> None:
    text = "extern int answre(int);\n" + (PART % 3).replace("n *", "answre(n) *")
    outcome = live.refused(compiled(live.program.folder, text, "-O2", "-g"))
    assert outcome.code == "undefined-symbols"
    has(outcome, "answre", "part.o", "unit.c:5", "answer")


def test_a_value_that_does_not_fit_is_refused_with_both_numbers(live: Live) -> None:
    text = """
    int answer(int n) { int v; __asm__("movl $main, %0" : "=r"(v)); return n + v; }
    """
    outcome = live.refused(compiled(live.program.folder, text, "-O2"))
    assert outcome.code == "fixup-range"
    has(outcome, "main", ".text+", "0x")


def test_two_strong_definitions_in_one_transaction_are_refused(live: Live) -> None:
    live.ask()
    before = books(live.session)
    extra = live.program.folder / "extra.o"
    contents = [(str(live.object), live.good()), (str(extra), live.good())]
    outcome = live.session.reload_contents(contents, 0.0, named=True)
    assert (outcome.state, outcome.code) == ("refused", "duplicate-symbol")
    has(outcome, "answer", "part.o", "extra.o", UNTOUCHED)
    assert books(live.session) == before
    live.ask()
    live.works()


def test_a_file_that_is_not_there_is_refused(live: Live) -> None:
    before = books(live.session)
    missing = str(live.program.folder / "missing.o")
    outcome = live.session.reload_files([missing], named=True)
    assert (outcome.state, outcome.code) == ("refused", "unreadable")
    has(outcome, missing, "No such file", UNTOUCHED)
    assert books(live.session) == before
    live.works()


def test_check_names_the_reason_and_changes_nothing(live: Live) -> None:
    before = books(live.session)
    bad = live.program.folder / "bad.o"
    bad.write_bytes(cut(live.good()))
    assert "ends at" in live.session.check(str(bad)).error
    undefined = compiled(
        live.program.folder, "int nowhere(void); int f(void) { return nowhere(); }"
    )
    bad.write_bytes(undefined)
    assert "nowhere" in live.session.check(str(bad)).error
    assert live.session.check(str(live.object)).error == ""
    assert books(live.session) == before
    live.works()


def archive_of(live: Live, *objects: Path) -> bytes:
    out = live.program.folder / "lib.a"
    out.unlink(missing_ok=True)
    subprocess.run(["/usr/bin/ar", "rcs", out, *objects], check=True)
    return out.read_bytes()


def test_an_archive_with_a_broken_index_is_refused(live: Live) -> None:
    (path,) = live.program.compile(member="int member(int n) { return n; }")
    data = bytearray(archive_of(live, path))
    assert data[8:10] == b"/ "
    data[68 + 4 : 68 + 8] = struct.pack(">I", 0x00AB_CDEF)  # the first symbol's member
    outcome = live.refused(bytes(data), live.program.folder / "lib.a")
    assert outcome.code == "bad-archive-index"
    has(outcome, "lib.a", "ranlib")


def test_an_object_the_program_was_not_built_from_is_named_and_refused(tmp_path: Path) -> None:
    program = Program(tmp_path)
    program.compile(main=MAIN, part=PART % 10)
    program.link()
    program.start()
    program.compile(part=(PART % 11).replace("count++", "count += n"))
    with attached(program) as session:
        assert "was not built from this file" in " ".join(session.notes)
        before = books(session)
        outcome = session.reload_files([str(tmp_path / "part.o")])
        assert (outcome.state, outcome.code) == ("refused", "not-of-this-program")
        assert UNTOUCHED in outcome.error
        assert books(session) == before
        assert program.ask(3) == 31
    assert program.stop() == 0


def test_an_object_that_nothing_needs_is_refused_unless_it_is_named(live: Live) -> None:
    (path,) = live.program.compile(stranger="int stranger(int n) { return n; }")
    before = books(live.session)
    outcome = live.session.reload_files([str(path)])
    assert (outcome.state, outcome.code) == ("refused", "unknown-object")
    has(outcome, "stranger.o", "reloader load", UNTOUCHED)
    assert books(live.session) == before
    live.works()
