"""What the compiler's own files say of a unit: checksums, fields, kinds, declarations."""

import json
import os
from pathlib import Path

import pytest

from reloader.elf.archive import read_archive
from reloader.elf.read import read_object
from reloader.errors.ocaml import (
    CompilerLibrariesError,
    MissingInterfaceError,
    NoCompilerError,
    NoUnitsError,
    OtherCompilerError,
    UnitUnreadableError,
)
from reloader.hosts.caml.compatible import is_original, refuse_other_compiler
from reloader.hosts.caml.compiler import find_compiler, inspector_program
from reloader.hosts.caml.globals_map import ProgramUnit, read_program_units
from reloader.hosts.caml.inspector import Inspector, build_folder, find_unit_files
from reloader.hosts.caml.symbols import UnitNames
from reloader.hosts.caml.unit_object import read_unit
from reloader.hosts.caml.units import UnitInfo, unit_from_json
from tests.support.ocaml import Compiler, build, compiler_of
from tests.support.ocaml_units import (
    CACHE,
    command,
    compiled,
    described,
    image_of,
    inspector,
    unit,
    unit_object,
)

STATE = """\
type row = { mutable count : int; label : string }
type t = Number of int | Row of row
exception Bad of int
exception Hidden of t
module Key = struct
  type t = string
  let equal = String.equal
  let hash (s : string) = Hashtbl.hash s
end
module Table = Hashtbl.Make (Key)
let counter = ref 0
let secret : int list ref = ref [] [@@reload.reset]
let table : (string, t) Hashtbl.t = Hashtbl.create 7
let rows : row Table.t = Table.create 7
let one = { count = 1; label = "x" }
module Inner = struct
  let seen = ref [1]
  let queue : t Queue.t = Queue.create () [@@reload.keep]
end
let find x = Hashtbl.find table x
let add a b c = a + b + c
let partial = add 1
module Make (X : sig val n : int end) = struct
  type line = Line of row
  let lines : line list ref = ref []
  let n = X.n
end
module Made = Make (struct let n = 3 end)
let thing = object val mutable x = 1 method get = x end
class counted = object val mutable y = 2 method y = y end
let instance = new counted
let left, right = ref 1, [| 1; 2 |]
let later = lazy (print_string "now")
let limit = 12
let buffer = Buffer.create 10
let text = Bytes.create 3
let stack : int Stack.t = Stack.create ()
let shared = Atomic.make 1
module type S = sig val x : int end
let packed = (module struct let x = 1 end : S)
"""
INTERFACE = """\
type t
val table : (string, t) Hashtbl.t
val find : string -> t
exception Bad of int
val counter : int ref
module Inner : sig val seen : int list ref end
"""


def slots_of(info: UnitInfo) -> dict[str, str]:
    return {slot.path: slot.kind for slot in info.slots}


def test_every_unit_of_the_standard_library_has_as_many_slots_as_its_block(
    compiler: Compiler,
) -> None:
    library = compiler.where / "stdlib.a"
    archive = read_archive(str(library), library.read_bytes())
    counts: dict[str, tuple[int, int]] = {}
    for row in range(len(archive.members)):
        file = archive.object(row)
        found = read_unit(file)
        assert found is not None
        info = inspector(compiler).unit(find_unit_files(library, file.member))
        assert info.complete
        assert info.symbol.encode() == found.symbol
        counts[info.name] = (info.field_count, found.block_size)
    assert {name: pair for name, pair in counts.items() if pair[0] != pair[1]} == {}
    assert len(counts) > 60


def test_slots_are_the_exported_ones_first_then_hidden_then_nested(
    compiler: Compiler, tmp_path: Path
) -> None:
    info = unit(compiler, tmp_path, STATE, INTERFACE)
    exported = [slot.path for slot in info.slots if slot.exported]
    assert exported == ["table", "find", "Bad", "counter", "Inner"]
    assert [slot.chain for slot in info.exported()] == [(0,), (1,), (2,), (3,), (4,)]
    hidden = [slot.path for slot in info.slots if not slot.exported]
    assert hidden[:4] == ["Hidden", "Key", "Table", "secret"]
    assert [p for p in hidden if "." in p][-3:] == ["Inner.seen", "Inner.queue", "Made.lines"]
    assert info.field_count == unit_object(tmp_path / "foo.o").block_size


def test_kinds_are_told_from_types_behind_aliases_functors_and_records(
    compiler: Compiler, tmp_path: Path
) -> None:
    kinds = slots_of(unit(compiler, tmp_path, STATE, INTERFACE))
    expected = {
        "table": "hashtbl", "rows": "hashtbl", "counter": "ref", "one": "mutable record",
        "Inner.queue": "queue", "find": "function", "partial": "function", "thing": "object",
        "instance": "object", "counted": "class", "left": "ref", "right": "array",
        "later": "lazy", "limit": "other", "buffer": "buffer", "text": "bytes",
        "stack": "stack", "shared": "atomic", "packed": "first-class module",
        "Made": "functor result", "Made.lines": "ref", "Inner": "module",
        "Bad": "constructor", "Hidden": "constructor",
    }  # fmt: skip
    assert {path: kinds[path] for path in expected} == expected


def test_a_slot_has_its_type_arity_line_attribute_and_the_types_it_is_made_of(
    compiler: Compiler, tmp_path: Path
) -> None:
    info = unit(compiler, tmp_path, STATE, INTERFACE)
    slots = {slot.path: slot for slot in info.slots}
    assert slots["table"].type == "(string, t) Hashtbl.t"
    assert slots["add"].arity == 3
    assert slots["partial"].arity == 0
    assert slots["counter"].line == 11
    assert slots["secret"].policy == "reset"
    assert slots["Inner.queue"].policy == "keep"
    assert slots["table"].mentions == ("Foo.t",)
    assert slots["Made.lines"].mentions == ("Foo.Made.line",)
    types = {row.path: row for row in info.types}
    assert types["t"].text == "type t = Number of int | Row of row"
    assert types["t"].mentions == ("Foo.row",)
    assert types["Make().line"].mentions == ("Foo.row",)
    assert set(types["Made.line"].mentions) == {"Foo.Make().line", "Foo.row"}
    constructors = {row.path: row.mentions for row in info.constructors}
    assert constructors == {"Bad": (), "Hidden": ("Foo.t",)}


def test_the_interface_is_told_item_by_item(compiler: Compiler, tmp_path: Path) -> None:
    info = unit(compiler, tmp_path, STATE, INTERFACE)
    assert dict(info.interface) == {
        "type t": "type t",
        "val table": "val table : (string, t) Hashtbl.t",
        "val find": "val find : string -> t",
        "constructor Bad": "exception Bad of int",
        "val counter": "val counter : int ref",
        "module Inner": "module Inner : sig val seen : int list ref end",
    }


def test_a_description_survives_json(compiler: Compiler, tmp_path: Path) -> None:
    info = unit(compiler, tmp_path, STATE, INTERFACE)
    assert unit_from_json(json.loads(json.dumps(info.to_json()))) == info


def test_checksums_are_those_that_the_executable_carries(
    compiler: Compiler, tmp_path: Path
) -> None:
    main = 'let () = print_endline "ready"; print_int (Foo.f 1)\n'
    made = build(
        compiler, tmp_path, {"foo.ml": "let f x = x + 1\n", "main.ml": main}, opaque=False
    )
    linked = read_program_units(image_of(made.executable))
    foo, other = (described(compiler, tmp_path / name) for name in ("foo.o", "main.o"))
    assert is_original(foo, linked)
    assert is_original(other, linked)
    assert foo.implementation is not None
    assert other.implementation is not None
    assert other.implementation.imports["Foo"] == foo.implementation.crc
    assert linked["Foo"].is_linked
    assert list(linked).index("Foo") < list(linked).index("Main")
    made.edit("foo.ml", "x + 1", "x + 2")
    assert not is_original(described(compiler, tmp_path / "foo.o"), linked)


def test_an_opaque_unit_is_not_looked_into(compiler: Compiler, tmp_path: Path) -> None:
    sources = {"foo.ml": "let f x = x + 1\n", "main.ml": "let g = Foo.f 1\n"}
    foo, main = compiled(compiler, tmp_path, sources)
    assert foo.opaque
    assert main.implementation is not None
    assert main.implementation.imports.get("Foo") is None
    assert main.imports["Foo"] == foo.interface_crc


def test_without_a_cmt_only_what_is_exported_is_known(
    compiler: Compiler, tmp_path: Path
) -> None:
    unit(compiler, tmp_path, STATE, INTERFACE)
    (tmp_path / "foo.cmt").unlink()
    info = described(compiler, tmp_path / "foo.o")
    assert not info.complete
    assert [slot.path for slot in info.slots] == ["table", "find", "Bad", "counter", "Inner"]
    assert slots_of(info)["table"] == "hashtbl"
    assert [row.abstract for row in info.types if row.path == "t"] == [True]


def test_weak_type_variables_have_the_same_text_each_time(
    compiler: Compiler, tmp_path: Path
) -> None:
    text = "let waiting = ref []\nlet other = ref []\n"
    first = unit(compiler, tmp_path, text, "(* hides them *)")
    again = described(compiler, tmp_path / "foo.o")
    assert first == again
    assert {slot.type for slot in first.slots} == {"'a list ref"}


def test_files_of_another_compiler_are_refused_by_magic_number(tmp_path: Path) -> None:
    old, new = compiler_of("4.13"), compiler_of("5.3")
    unit(old, tmp_path, "let x = 1\n")
    with pytest.raises(UnitUnreadableError, match="Build the unit and the program with one"):
        described(new, tmp_path / "foo.o")
    unit(new, tmp_path, "let x = 1\n")
    with pytest.raises(UnitUnreadableError, match="Build the unit and the program with one"):
        described(old, tmp_path / "foo.o")


def test_a_damaged_file_is_named_and_the_reader_goes_on(
    compiler: Compiler, tmp_path: Path
) -> None:
    info = unit(compiler, tmp_path, "let x = 1\n")
    whole = (tmp_path / "foo.cmt").read_bytes()
    (tmp_path / "foo.cmt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnitUnreadableError) as caught:
        described(compiler, tmp_path / "foo.o")
    assert str(tmp_path / "foo.o") in str(caught.value)
    (tmp_path / "foo.cmt").write_bytes(whole)
    assert described(compiler, tmp_path / "foo.o") == info


def test_a_reader_that_was_ended_is_started_again(compiler: Compiler, tmp_path: Path) -> None:
    info = unit(compiler, tmp_path, "let x = 1\n")
    with Inspector(command(compiler), CACHE) as own:
        files = find_unit_files(tmp_path / "foo.o")
        assert own.unit(files) == info
        assert own.process is not None
        own.process.kill()
        own.process.wait()
        assert own.unit(files) == info


def test_an_object_without_interface_names_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(MissingInterfaceError) as caught:
        find_unit_files(tmp_path / "native" / "foo.o")
    text = str(caught.value)
    assert str(tmp_path / "native" / "foo.cmi") in text
    assert str(tmp_path / "byte" / "foo.cmi") in text


def test_dunes_folders_are_known(tmp_path: Path) -> None:
    objects = tmp_path / "_build" / "default" / "bin" / ".main.eobjs"
    for name in (
        "native/dune__exe__Foo.cmx",
        "byte/dune__exe__Foo.cmi",
        "byte/dune__exe__Foo.cmt",
    ):
        (objects / name).parent.mkdir(parents=True, exist_ok=True)
        (objects / name).touch()
    files = find_unit_files(objects / "native" / "dune__exe__Foo.o")
    assert files.interface == objects / "byte" / "dune__exe__Foo.cmi"
    assert files.typed == objects / "byte" / "dune__exe__Foo.cmt"
    assert files.optimised == objects / "native" / "dune__exe__Foo.cmx"
    assert files.folder == tmp_path / "_build" / "default"
    assert build_folder(tmp_path / "src" / "foo.o") == tmp_path / "src"


def test_a_missing_compiler_is_named() -> None:
    with pytest.raises(NoCompilerError, match="no-such-ocamlopt"):
        find_compiler("no-such-ocamlopt -g")


def test_missing_compiler_libraries_name_the_package(tmp_path: Path) -> None:
    compiler = command(compiler_of("4.13"))
    library = tmp_path / "lib"
    library.mkdir()
    for entry in os.scandir(compiler.where):
        if entry.name != "compiler-libs":
            (library / entry.name).symlink_to(entry.path)
    fake = tmp_path / "ocamlopt"
    fake.write_text(f'#!/bin/sh\nexport OCAMLLIB={library}\nexec ocamlopt "$@"\n')
    fake.chmod(0o755)
    with pytest.raises(CompilerLibrariesError, match="apt install ocaml-compiler-libs"):
        inspector_program(find_compiler(str(fake)), tmp_path / "cache")


def test_a_program_of_another_compiler_is_refused_with_both_checksums() -> None:
    other = {"Stdlib": ProgramUnit("Stdlib", "00ff", "00", ())}
    reader = inspector(compiler_of("4.13"))
    with pytest.raises(OtherCompilerError) as caught:
        refuse_other_compiler(reader, other, "a.out")
    assert "its Stdlib has interface 00ff" in str(caught.value)
    assert reader.about()["standard_interface"] in str(caught.value)


def test_a_program_that_is_not_ocamls_has_no_units() -> None:
    with pytest.raises(NoUnitsError, match="caml_globals_map"):
        read_program_units(image_of(Path("/bin/true")))


def test_function_names_are_read_and_found_in_both_spellings(
    compiler: Compiler, tmp_path: Path
) -> None:
    text = "let ( ++ ) a b = a + b\nlet f' x = x + 1\nmodule M = struct let f x = x * 2 end\n"
    for name in ("foo.ml", "dune__exe__Handlers.ml"):
        compiled(compiler, tmp_path, {name: text})
    found = [unit_symbols(tmp_path / name) for name in ("foo.o", "dune__exe__Handlers.o")]
    symbols = [*found[0], *found[1]]
    names = UnitNames(["Foo", "Dune__exe__Handlers", "Dune__exe"])
    shown = {names.shown(symbol) for symbol in symbols} - {None}
    expected = {"Foo", "Foo.( ++ )", "Foo.f'", "Foo.f"}
    assert shown == expected | {name.replace("Foo", "Handlers") for name in expected}
    for query in ("Handlers.( ++ )", "Foo.++", "Foo.f'", "Foo.M.f", "Dune__exe__Handlers.f"):
        assert len(list(names.find(query, symbols))) == 1, query
    assert list(names.find("Foo.nothing", symbols)) == []


def unit_symbols(file: Path) -> list[bytes]:
    read = read_object(str(file), file.read_bytes())
    return [name for name in read.symbol_names if name.startswith(b"caml")]
