"""Seeded edits of a generated program: old data and new code disagree after some of them."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from reloader.elf.sources import source_line
from reloader.errors.base import ReloaderError
from reloader.live.linking import link_transaction
from reloader.session.checking import read_file
from reloader.session.session import Session
from tests.support.mutation_world import TYPES, Fields, World
from tests.support.road import MAIN, Program, attached

BUILDS: Final = (  # compiler, flags
    ("gcc", ("-O2", "-g")),
    ("gcc", ("-O0", "-g")),
    ("gcc", ("-O1", "-g", "-gdwarf-4", "-fdata-sections", "-ffunction-sections")),
    ("clang", ("-O1", "-g")),
)
Edit = Callable[[World, Random], None]


def _fields(world: World, random: Random) -> Fields:
    return random.choice((world.inner, world.outer, world.union, world.local, world.members))


def swap_members(world: World, random: Random) -> None:
    fields = random.choice((world.inner, world.outer))
    one, other = random.sample(range(len(fields)), 2)
    fields[one], fields[other] = fields[other], fields[one]


def retype_member(world: World, random: Random) -> None:
    fields = _fields(world, random)
    at = random.randrange(len(fields))
    kinds = [kind for kind in TYPES if kind != fields[at][0]]
    fields[at] = random.choice(kinds), fields[at][1]


def add_member(world: World, random: Random) -> None:
    fields = random.choice((world.inner, world.outer, world.members))
    fields.insert(random.randint(0, len(fields)), (random.choice(TYPES), "added"))


def remove_member(world: World, random: Random) -> None:
    fields = random.choice((world.inner, world.outer))
    del fields[random.randrange(len(fields))]


def resize_bits(world: World, random: Random) -> None:
    at = random.randrange(len(world.bits))
    name, width = world.bits[at]
    world.bits[at] = name, width + random.randint(1, 3)


def resize_table(world: World, random: Random) -> None:
    world.table += random.choice((-1, 1, 2, 5))


def retype_parameter(world: World, random: Random) -> None:
    at = random.randrange(len(world.parameters))
    kinds = [
        k for k in ("int", "long", "double", "char *", "short") if k != world.parameters[at]
    ]
    world.parameters[at] = random.choice(kinds)


def add_parameter(world: World, random: Random) -> None:
    world.parameters.insert(random.randint(0, len(world.parameters)), "int")


def remove_parameter(world: World, random: Random) -> None:
    del world.parameters[random.randrange(len(world.parameters))]


def retype_result(world: World, random: Random) -> None:
    world.result = random.choice([k for k in ("int", "long", "double") if k != world.result])


def retype_callback(world: World, random: Random) -> None:
    world.call = random.choice([k for k in ("int", "long", "double") if k != world.call])


def renumber_enum(world: World, random: Random) -> None:
    at = random.randrange(len(world.colors))
    world.colors[at] = world.colors[at][0], 40 + at


def insert_enum(world: World, random: Random) -> None:
    at = random.randrange(len(world.colors))
    names = [name for name, _ in world.colors]
    names.insert(at, "ADDED")
    world.colors = [(name, value) for value, name in enumerate(names)]


def drop_enum(world: World, random: Random) -> None:
    del world.colors[random.randrange(len(world.colors))]


def swap_enum(world: World, random: Random) -> None:
    one, other = random.sample(range(len(world.colors)), 2)
    (a, x), (b, y) = world.colors[one], world.colors[other]
    world.colors[one], world.colors[other] = (a, y), (b, x)


def insert_virtual(world: World, random: Random) -> None:
    functions = random.choice((world.base, world.derived))
    functions.insert(random.randint(0, len(functions)), "added")


def remove_virtual(world: World, random: Random) -> None:
    functions = random.choice((world.base, world.derived))
    del functions[random.randrange(len(functions))]


def swap_virtual(world: World, random: Random) -> None:
    functions = random.choice((world.base, world.derived))
    one, other = random.sample(range(len(functions)), 2)
    functions[one], functions[other] = functions[other], functions[one]


def add_parent(world: World, random: Random) -> None:
    world.parents = random.choice(("Base, Other", "Other, Base"))


def retype_local(world: World, random: Random) -> None:
    at = random.randrange(len(world.local))
    kinds = [kind for kind in TYPES if kind != world.local[at][0]]
    world.local[at] = random.choice(kinds), world.local[at][1]


def swap_local(world: World, random: Random) -> None:
    world.local[0] = "int", world.local[0][1]
    world.local.reverse()
    _ = random


def add_local(world: World, random: Random) -> None:
    world.local.insert(random.randint(0, len(world.local)), ("double", "added"))


DANGEROUS: Final[dict[str, tuple[Edit, ...]]] = {
    "layout": (swap_members, retype_member, remove_member, resize_bits),
    "size": (resize_table, add_member),
    "signature": (
        retype_parameter, add_parameter, remove_parameter, retype_result, retype_callback,
    ),
    "enum": (renumber_enum, insert_enum, drop_enum, swap_enum),
    "vtable": (insert_virtual, remove_virtual, swap_virtual, add_parent),
    "tls": (retype_local, add_local),
}  # fmt: skip


def _set(**values: object) -> Edit:
    def edit(world: World, _random: Random) -> None:
        for name, value in values.items():
            setattr(world, name, value)

    return edit


def rename_member(world: World, random: Random) -> None:
    fields = _fields(world, random)
    at = random.randrange(len(fields))
    fields[at] = fields[at][0], "renamed"


def rename_type(world: World, random: Random) -> None:
    fields = _fields(world, random)
    at = random.randrange(len(fields))
    world.prelude = f"typedef {fields[at][0]} measure;"
    if fields is not world.members:
        fields[at] = "measure", fields[at][1]


def append_enum(world: World, _random: Random) -> None:
    world.colors.append(("APPENDED", max(value for _, value in world.colors) + 1))


def override(world: World, random: Random) -> None:
    world.overrides = [random.choice(world.base)]


HARMLESS: Final[dict[str, Edit]] = {
    "a comment": _set(prelude="/* what\n   it is\n   for */"),
    "a macro": _set(prelude="#define UNUSED 1\n#define ALSO 2"),
    "an include": _set(prelude="#include <stddef.h>\n#include <stdint.h>"),
    "includes in another order": _set(prelude="#include <stdint.h>\n#include <stddef.h>"),
    "a new struct": _set(more_header="struct fresh { int a; struct outer *o; };"),
    "a new prototype": _set(more_header="int fresh(struct inner *);"),
    "a forward declaration": _set(prelude="struct outer; struct inner;"),
    "a new function": _set(
        before="static int fresh(int n) { return n; }\nint (*used)(int) = fresh;"
    ),
    "a new variable": _set(before="int fresh = 3;"),
    "a new static variable": _set(before="static long fresh[3]; long *used = fresh;"),
    "a renamed local variable": _set(scratch_name="renamed"),
    "a retyped local variable": _set(scratch="long"),
    "a struct inside of a function": _set(private="long b; short a; char c[9];"),
    "a constant": _set(constant=11),
    "a method": _set(methods="int plain(int n) { return n; }", constant=12),
    "a static member": _set(methods="static int count;", constant=13),
    "functions in another order": _set(swapped=True),
    "const parameters": _set(qualifier="const "),
    "a renamed member": rename_member,
    "a typedef": rename_type,
    "an appended enum value": append_enum,
    "an overridden function": override,
}


@dataclass(frozen=True)
class Verdict:
    """What became of one edit."""

    kind: str
    edit: str
    dangerous: bool
    code: str  # of the refusal, "": it would load
    text: str = ""

    @property
    def right(self) -> bool:
        """Whether a dangerous edit is refused, a harmless one is not."""
        return bool(self.code) == self.dangerous


@contextmanager
def generated(folder: Path, seed: int) -> Generator[tuple[Program, Session, World]]:
    """Run the program of a seed and attach to it."""
    world = World.of(Random(seed))  # noqa: S311 - repeatable, not secret
    cc, flags = BUILDS[seed % len(BUILDS)]
    program = Program(folder, flags, cc=cc)
    touch = "void touch(void *d, unsigned long n) { volatile char *p = d; while (n--) p[n]; }\n"
    program.compile(main=touch + MAIN)
    write(program, world, ("state", "user", "shapes"))
    program.cc = "g++"
    program.link()
    program.cc = cc
    program.start()
    try:
        with attached(program) as session:
            yield program, session, world
    finally:
        program.stop()


def write(program: Program, world: World, names: Sequence[str]) -> list[Path]:
    """Write a world's sources and compile some of them."""
    (program.folder / "shared.h").write_text(world.header())
    texts = {"state": world.state(), "user": world.user(), "shapes": world.shapes()}
    cpp = Program(program.folder, [*program.flags, "-x", "c++"], cc=program.cc)
    return [
        path
        for name in names
        for path in (cpp if name == "shapes" else program).compile(**{name: texts[name]})
    ]


def try_edit(
    case: tuple[Program, Session, World], kind: str, edit: Edit, random: Random
) -> Verdict | None:
    """Compile an edit and say what a reload would say; None: the edit changed nothing."""
    program, session, world = case
    edited = deepcopy(world)
    edit(edited, random)
    if edited == world:
        return None
    names = ["shapes"] if edited.shapes() != world.shapes() else []
    if edited.header() + edited.state() != world.header() + world.state():
        # a changed signature is wrong only where the caller stays
        alone = kind == "signature" or random.random() < 0.5
        names += ["state"] if alone else ["state", "user"]
    code, text = refusal(session, write(program, edited, names))
    name = getattr(edit, "__name__", kind)
    return Verdict(kind, name, kind in DANGEROUS, code, text)


def refusal(session: Session, paths: list[Path]) -> tuple[str, str]:
    """Return code and text of why files would not load together, ("", "") if they would."""
    contents = [(str(path), read_file(str(path))) for path in paths]
    try:
        objects, _ = session.chosen(contents, named=True)
        with ExitStack() as undo:
            if not objects:  # the very same bytes
                return "", ""
            link_transaction(session.program, objects, frozenset(), source_line, undo)
    except ReloaderError as error:
        return error.code, str(error)
    return "", ""


def mutations(folder: Path, seed: int, *, dangerous: int, harmless: int) -> Iterator[Verdict]:
    """Yield the verdicts on some edits of the program of a seed."""
    random = Random(seed + 1000)  # noqa: S311 - repeatable, not secret
    kinds = list(DANGEROUS)
    plain = list(HARMLESS)
    with generated(folder, seed) as case:
        done = 0
        while done < dangerous:
            kind = kinds[done % len(kinds)]
            verdict = try_edit(case, kind, random.choice(DANGEROUS[kind]), random)
            if verdict is not None:
                done += 1
                yield verdict
        for at in range(harmless):
            kind = plain[(at + seed * harmless) % len(plain)]
            verdict = try_edit(case, kind, HARMLESS[kind], random)
            if verdict is not None:
                yield verdict
