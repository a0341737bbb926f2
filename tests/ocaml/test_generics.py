"""Generic functions that no library has: cut from a start-up file, pulled by name, and run."""

from functools import partial
from pathlib import Path

import pytest

from reloader.elf.archive import Archive, read_archive
from reloader.elf.object import ObjectFile
from reloader.elf.read import read_object
from reloader.errors.ocaml import GenericsError
from reloader.hosts.caml.compiler import Compiler as Command
from reloader.hosts.caml.generics import (
    MOST,
    generic_archive,
    generic_unit,
    is_generic,
    split_startup,
)
from reloader.hosts.caml.script import Script
from reloader.hosts.caml.unit_object import place_of, read_unit
from reloader.link.layout import image, one_by_one
from reloader.link.pipeline import Setting
from reloader.linker.alone import Wishes, link_alone
from reloader.linker.names import Names
from reloader.live.commit import assign_slots
from reloader.live.inputs import defined_names, wanted_names
from reloader.live.target import Allocation
from tests.support.caml_runtime import Live, Place, entered
from tests.support.ocaml import Compiler, build, compiler_of
from tests.support.ocaml_units import CACHE, command

KINDS = ("curry", "apply", "tuplify", "send")
# called by the generated code; part of every runtime
RUNTIME = {b"caml_call_gc", b"caml_call_realloc_stack", b"_GLOBAL_OFFSET_TABLE_"}
HOST = """\
let keep x = ignore (Sys.opaque_identity x)
let () = keep (object method size = Array.length (Array.make 3 0) end)
let () = keep (List.map, Printf.sprintf, Gc.compact)
let () =
  print_endline "ready";
  try
    while true do
      let line = read_line () in
      print_endline (Unit_a.answer line)
    done
  with End_of_file -> ()
"""
PLAIN = "let answer line = line\n"
GREEDY = """\
let keep = Sys.opaque_identity
let many a b c d e f g h i j k l m = a + b + c + d + e + f + g + h + i + j + k + l + m
let five (a, b, c, d, e) = a * b * c * d * e
let thing = object method sum a b c d = a + b + c + d end
let partial = keep (keep many 1 2 3)
let answer line =
  let n = int_of_string line in
  Gc.compact ();
  let through f = f n 5 6 7 8 9 10 11 12 13 in
  let tuple = List.map (keep five) [ (1, 2, 3, 4, n) ] in
  let late = List.map (fun f -> f 4) [ keep (keep many n n n n n n n n n n n) ] in
  Gc.full_major ();
  Printf.sprintf "%d %d %d %d" (keep through partial) (List.hd tuple)
    ((keep thing)#sum n 2 3 4) ((List.hd late) n)
"""


def archive_of(compiler: Compiler) -> Archive:
    path = generic_archive(command(compiler), CACHE)
    return read_archive(str(path), path.read_bytes())


def some_members(archive: Archive) -> list[ObjectFile]:
    """Return four arities of each kind."""
    names = [f"Reloader_{kind}{row}.o" for kind in KINDS for row in (2, 9, 23, 31)]
    rows = [row for row, member in enumerate(archive.members) if member.name in names]
    return [archive.object(row) for row in rows]


def test_every_generic_function_has_one_object_with_all_its_helpers(
    compiler: Compiler,
) -> None:
    archive = archive_of(compiler)
    expected = {f"caml_send{row}".encode() for row in range(MOST)}
    for kind in KINDS[:3]:
        expected |= {f"caml_{kind}{row}".encode() for row in range(2, MOST + 1)}
    assert expected <= set(archive.symbols)
    for file in some_members(archive):
        missing = wanted_names(file) - defined_names(file) - RUNTIME
        assert missing == set(), file.name


def test_each_object_looks_like_a_unit_that_does_nothing(compiler: Compiler) -> None:
    for file in some_members(archive_of(compiler)):
        unit = read_unit(file)
        assert unit is not None, file.name
        assert (
            min(unit.rows.frametable, unit.rows.entry, unit.rows.gc_roots, unit.rows.code_end)
            >= 0
        ), file.name
        assert is_generic(file)
        assert generic_unit(file).symbol.encode() == unit.symbol


def pulled(live: Live, archive: Archive, file: ObjectFile) -> list[ObjectFile]:
    """Return the generic functions that an object needs and the program does not have."""
    names = sorted(wanted_names(file))
    found = live.program.index.find(names).found
    lacking = [name for name, known in zip(names, found, strict=True) if not known]
    rows = {archive.symbols[name] for name in lacking if name in archive.symbols}
    return [archive.object(row) for row in sorted(rows)]


def loaded(live: Live, files: list[ObjectFile]) -> Script:
    """Link units together into the program; return a script that registers each."""
    memory: list[Allocation] = []
    arena = live.process.arena

    def allocate(region: int, size: int) -> Allocation:
        memory.append(arena.allocate(region, size))
        return memory[-1]

    names = Names(process=live.program.index)
    setting = Setting(
        arch=live.program.arch,
        live=[None] * len(files),
        source=names,
        arena=arena.span(),
        assign_slots=partial(assign_slots, program=live.program),
        allocate=one_by_one(allocate),
    )
    linked = link_alone(files, setting, names, Wishes())
    for item in linked.placed:
        data = image(linked.graph, item, live.program.arch)
        arena.view(item.allocation.addr, len(data))[:] = data
    script = Script()
    for row, file in enumerate(files):
        unit = read_unit(file)
        assert unit is not None
        place = place_of(linked.graph, row, unit)
        name = unit.symbol.removeprefix(b"caml").decode()
        script.register(name, place)
        script.initialise(name, place.entry)
        if name == "Unit_a":
            moves = [(Place(live.block(name), (0,)), Place(place.block, (5,)))]
            script.swap(name, moves)
    return script


@pytest.mark.live
def test_a_unit_whose_generic_functions_the_program_lacks_runs(
    compiler: Compiler, tmp_path: Path
) -> None:
    made = build(compiler, tmp_path, {"unit_a.ml": PLAIN, "host.ml": HOST})
    with entered(made) as live:
        assert made.ask("7") == "7"
        made.write({"unit_a.ml": GREEDY})
        path = made.compile("unit_a.ml")
        file = read_object(str(path), path.read_bytes())
        needed = pulled(live, archive_of(compiler), file)
        kinds = {Path(each.member).stem for each in needed}
        assert {"Reloader_curry13", "Reloader_tuplify5"} <= kinds
        live.runtime.run(loaded(live, [*needed, file]))
        n = 7
        answers = [91 - 4 + n, 24 * n, n + 9, 12 * n + 4]
        assert made.ask("7") == " ".join(map(str, answers))


def test_a_start_up_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no frame table"):
        list(split_startup("\t.text\n"))
    known = command(compiler_of("4.13"))
    broken = Command(("false",), known.version, known.where, known.flambda, known.assembler)
    with pytest.raises(GenericsError, match="any number of arguments could not be made"):
        generic_archive(broken, tmp_path)
    assert list(tmp_path.iterdir()) == []
