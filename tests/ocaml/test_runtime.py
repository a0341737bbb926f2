"""The agent's OCaml side in real programs: safe points, initialisers, kept state, undoing."""

import socket
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from reloader.errors.ocaml import (
    BusyRuntimeError,
    HookError,
    InitialiserError,
    PlaceMissingError,
)
from reloader.hosts.caml.runtime import Place, Script
from tests.support.caml_runtime import Live, entered, entered_late, version
from tests.support.ocaml import Build, Compiler, build, compiler_of

pytestmark = pytest.mark.live

SECOND = """
let calls = ref 0
let version () = incr calls; 2
let count () = !calls
"""
HOST = """
let junk = ref []
let spend () =
  junk := [];
  for i = 1 to 2000 do junk := string_of_int i :: !junk done
let captured = ref []
let answer line =
  match String.split_on_char ' ' line with
  | [ "f"; n ] -> string_of_int (Unit_a.f (int_of_string n))
  | [ "name" ] -> Unit_a.name
  | [ "b" ] -> Unit_b.name
  | [ "seen"; word ] -> string_of_int (Unit_a.seen word)
  | [ "capture" ] -> captured := Unit_a.f :: !captured; "captured"
  | [ "captured" ] -> String.concat " " (List.map (fun f -> string_of_int (f 1)) !captured)
  | [ "release" ] -> captured := []; "released"
  | [ "compact" ] -> spend (); Gc.compact (); "compacted"
  | [ "limit"; n ] -> (try ignore (Unit_a.f (int_of_string n)); "none" with Unit_a.Limit n -> string_of_int n)
  | [ "trace" ] -> String.concat "|" (String.split_on_char '\\n' (Printexc.get_backtrace ()))
  | [ "fork" ] ->
      (match Unix.fork () with
       | 0 -> Unix.sleepf 0.001; print_endline ("child " ^ Unit_a.name); exit 0
       | child -> ignore (Unix.waitpid [] child); "parent " ^ Unit_a.name)
  | _ -> "what?"
let () =
  Printexc.record_backtrace true;
  print_endline "ready";
  try while true do print_endline (answer (read_line ())) done with End_of_file -> ()
"""
UNIT_A = """
exception Limit of int
let name = Sys.opaque_identity "%s"
let table : (string, int) Hashtbl.t = Hashtbl.create 8
let find = Hashtbl.find_opt table
let f n = if n > 100 then raise (Limit n) else n + %d
let seen word =
  let n = 1 + (match find word with Some n -> n | None -> 0) in
  Hashtbl.replace table word n; n
"""
UNIT_A_TYPE = """
exception Limit of int
val name : string
val f : int -> int
val seen : string -> int
"""
UNIT_B = 'let name = Sys.opaque_identity "%s"\n'
UNIT_B_TYPE = "val name : string\n"
A_FIELDS = (0, 1, 2, 3)  # Limit, name, f, seen
LIMIT, TABLE = 0, 4  # the constructor, and a field that no other unit knows


@pytest.fixture(scope="module")
def waits(compiler: Compiler, tmp_path_factory: pytest.TempPathFactory) -> tuple[Build, Path]:
    program = build(compiler, tmp_path_factory.mktemp("waits"), "waits")
    return program, version(program, "part", SECOND)


@pytest.fixture(scope="module")
def host(compiler: Compiler, tmp_path_factory: pytest.TempPathFactory) -> Build:
    texts = {
        "main.ml": HOST,
        "unit_a.ml": UNIT_A % ("first", 1),
        "unit_a.mli": UNIT_A_TYPE,
        "unit_b.ml": UNIT_B % "first",
        "unit_b.mli": UNIT_B_TYPE,
    }
    return build(compiler, tmp_path_factory.mktemp("host"), texts, packages=["unix"])


@pytest.fixture
def live(host: Build) -> Generator[Live]:
    with entered(host) as found:
        yield found


@pytest.mark.parametrize("way", ["select", "read", "system", "accept"])
def test_a_blocked_program_gets_new_code_and_its_call_does_not_fail(
    waits: tuple[Build, Path], way: str
) -> None:
    program, second = waits
    with entered(program, way) as live:
        if way == "accept":
            port = int(program.line())
        _, done = live.swap(second, [0, 1])
        if way == "accept":
            socket.create_connection(("127.0.0.1", port)).close()
            assert program.line() == "version 2 1"
        else:
            assert program.ask("go") == "version 2 1"
        assert done.by_thread


@pytest.mark.parametrize("way", ["sleep", "allocating", "compacting", "computing"])
def test_a_busy_program_gets_new_code(waits: tuple[Build, Path], way: str) -> None:
    program, second = waits
    with entered(program, way) as live:
        live.swap(second, [0, 1])
        assert program.line() == "version 2 2"


@pytest.mark.parametrize("way", ["allocating", "compacting", "computing"])
def test_a_busy_program_that_is_entered_late_gets_new_code(
    waits: tuple[Build, Path], way: str
) -> None:
    program, second = waits
    with entered_late(program, way) as live:
        live.swap(second, [0, 1])
        assert program.line() == "version 2 2"


def test_a_blocked_program_that_is_entered_late_gets_new_code_when_its_call_ends(
    tmp_path: Path,
) -> None:
    program = build(compiler_of("4.13"), tmp_path, "waits")
    second = version(program, "part", SECOND)
    with entered_late(program, "read") as live:
        swap = threading.Thread(target=live.swap, args=(second, [0, 1]))
        swap.start()
        while live.process.channel.field("caml_phase") != 1 and swap.is_alive():
            pass
        answer = program.ask("go")
        swap.join()
        assert answer in {
            "version 1 1",
            "version 2 1",
        }  # a swap may come after the last question


def test_a_c_function_that_keeps_the_runtime_is_waited_for_and_given_up(
    waits: tuple[Build, Path],
) -> None:
    program, second = waits
    with entered(program, "holding") as live:
        live.runtime.limit_ms = 50
        with pytest.raises(BusyRuntimeError, match="waited 50 ms") as caught:
            live.swap(second, [0, 1])
        assert "Nothing was changed." in str(caught.value)
        assert program.ask("go") == "version 1 1"  # what was given up never runs
        live.runtime.limit_ms = 10_000
        live.swap(second, [0, 1])


def test_an_initialiser_that_raises_fifty_times_leaves_no_trace(live: Live) -> None:
    text = 'let rec dig n = if n = 0 then failwith "no" else 1 + dig (n - 1)\nlet () = ignore (dig 2)\n'
    bad = version(live.build, "unit_a", UNIT_A % ("bad", 0) + text)
    assert live.build.ask("limit 101") == "101"
    before = 0
    for number in range(50):
        before = (
            mapped(live) if number == 1 else before
        )  # the C library keeps our thread's stack
        unit = live.load(bad)
        with pytest.raises(InitialiserError) as caught:
            live.runtime.run(live.script(unit, A_FIELDS))
        assert caught.value.still_known == 0
        live.drop(unit)
    assert caught.value.unit == "Unit_a"
    assert caught.value.exception == 'Failure("no")'
    assert any('dig in file "unit_a.ml", line 10' in line for line in caught.value.backtrace)
    assert "Stdlib.failwith in file" in caught.value.backtrace[0]
    assert live.build.ask("name") == "first"
    assert live.build.ask("compact") == "compacted"
    assert mapped(live) - before < 1 << 20


def test_a_transaction_whose_second_unit_raises_is_undone_in_the_first(live: Live) -> None:
    first = live.load(version(live.build, "unit_a", UNIT_A % ("second", 2)))
    other = live.load(
        version(live.build, "unit_b", UNIT_B % "second" + "let () = raise Not_found")
    )
    script = live.script(first, A_FIELDS)
    bad = live.script(other, [0])
    script.owner |= {at + len(script.words): name for at, name in bad.owner.items()}
    script.words += bad.words
    with pytest.raises(InitialiserError, match="the initialiser of Unit_b raised Not_found"):
        live.runtime.run(script)
    assert [live.build.ask(text) for text in ("name", "b", "f 1")] == ["first", "first", "2"]


def test_kept_state_goes_on_and_captured_pointers_lead_to_it(live: Live) -> None:
    assert [live.build.ask("seen a") for _ in range(3)] == ["1", "2", "3"]
    kept = [(LIMIT, LIMIT), (TABLE, TABLE)]
    _, done = live.swap(version(live.build, "unit_a", UNIT_A % ("second", 2)), A_FIELDS, kept)
    assert done.forwarded >= 1  # `find` had captured the new table
    assert live.build.ask("name") == "second"
    assert live.build.ask("seen a") == "4"
    assert live.build.ask("limit 200") == "200"  # the handler knows the exception still
    assert live.build.ask("compact") == "compacted"
    assert live.build.ask("seen a") == "5"
    assert live.build.ask("f 1") == "3"


def test_a_backtrace_has_lines_of_the_new_file(live: Live) -> None:
    text = "\n\n\n" + UNIT_A % ("second", 2)
    live.swap(version(live.build, "unit_a", text), A_FIELDS, [(LIMIT, LIMIT)])
    assert live.build.ask("limit 200") == "200"
    assert 'f in file "unit_a.ml", line 9' in live.build.ask("trace")


def test_functions_are_called_around_a_swap_and_one_that_raises_undoes_it(live: Live) -> None:
    hook = 'let before () = print_string "before "\nlet after () = failwith "after"\n'
    first = live.load(version(live.build, "unit_a", UNIT_A % ("second", 2) + hook))
    script = live.script(first, A_FIELDS)
    script.call("Unit_a.before", Place(first.place.block, (6,)))
    live.runtime.run(script)
    assert live.build.ask("name") == "before second"
    again = live.load(version(live.build, "unit_a", UNIT_A % ("third", 3) + hook))
    script = live.script(again, A_FIELDS)
    script.call("Unit_a.after", Place(again.place.block, (7,)))
    with pytest.raises(HookError, match="Unit_a.after raised"):
        live.runtime.run(script)
    assert live.build.ask("name") == "second"


def test_a_field_that_is_not_there_undoes_all(live: Live) -> None:
    unit = live.load(version(live.build, "unit_a", UNIT_A % ("second", 2)))
    script = live.script(unit, A_FIELDS)
    script.swap("Unit_a", [(Place(live.block("Unit_a"), (77,)), Place(unit.place.block, (0,)))])
    with pytest.raises(PlaceMissingError, match="Unit_a: a field"):
        live.runtime.run(script)
    assert live.build.ask("name") == "first"


def test_an_initialiser_that_prints_waits_and_recurses_runs_while_the_program_is_blocked(
    live: Live,
) -> None:
    text = 'let rec deep n = if n = 0 then 0 else 1 + deep (n - 1)\nlet () = Printf.printf "%d " (deep 100_000); Unix.sleepf 0.02; print_string "slept "\n'
    unit = live.load(version(live.build, "unit_a", UNIT_A % ("second", 2) + text))
    live.runtime.run(live.script(unit, A_FIELDS))
    assert live.build.ask("name") == "100000 slept second"


def test_an_initialiser_without_end_is_interrupted(live: Live) -> None:
    text = "let () = while true do ignore (Sys.opaque_identity (ref 0)) done\n"
    unit = live.load(version(live.build, "unit_a", UNIT_A % ("second", 2) + text))
    live.runtime.patience_ms = 100
    with pytest.raises(InitialiserError, match="takes too long and was interrupted"):
        live.runtime.run(live.script(unit, A_FIELDS))
    assert live.build.ask("name") == "first"


def test_an_initialiser_that_recurses_for_ever_raises_stack_overflow(live: Live) -> None:
    text = "let rec deep n = 1 + deep (n + 1)\nlet () = ignore (deep 0)\n"
    unit = live.load(version(live.build, "unit_a", UNIT_A % ("second", 2) + text))
    with pytest.raises(InitialiserError, match="Stack_overflow"):
        live.runtime.run(live.script(unit, A_FIELDS))
    assert live.build.ask("name") == "first"


def test_a_forked_child_runs_on_after_a_swap(live: Live) -> None:
    live.swap(version(live.build, "unit_a", UNIT_A % ("second", 2)), A_FIELDS, [(LIMIT, LIMIT)])
    assert live.build.ask("fork") == "child second"
    assert live.build.line() == "parent second"
    live.swap(version(live.build, "unit_a", UNIT_A % ("third", 2)), A_FIELDS, [(LIMIT, LIMIT)])
    assert live.build.ask("name") == "third"


@pytest.mark.parametrize("way", ["busy", "idle"])
def test_a_program_with_threads_gets_new_code(
    compiler: Compiler, tmp_path: Path, way: str
) -> None:
    program = build(compiler, tmp_path, "threads", packages=["threads.posix"])
    with entered(program, way) as live:
        for number in range(2, 8):
            text = f"let taken = ref 0\nlet version () = {number}\nlet step n = incr taken; n + 1\nlet steps () = !taken\n"
            live.swap(version(program, "part", text), [0, 1, 2])
            assert program.ask("version") == str(number)
            assert program.ask("step") == "1"


def test_no_domain_sees_half_of_a_swap(tmp_path: Path) -> None:
    program = build(compiler_of("5.3"), tmp_path, "domains")
    with entered(program) as live:
        for number in range(2, 12):
            text = f"let first = Sys.opaque_identity {number}\nlet second = Sys.opaque_identity {number}\nlet work n = n land 15\n"
            live.swap(version(program, "part", text), [0, 1, 2])
            assert program.ask(f"reached {number}") == "reached"
        assert program.ask("mixed") == "0"


def test_a_script_larger_than_the_text_area_is_executed(live: Live) -> None:
    unit = live.load(version(live.build, "unit_a", UNIT_A % ("second", 2)))
    script = live.script(unit, A_FIELDS)
    move = (Place(live.block("Unit_a"), (1,)), Place(unit.place.block, (1,)))
    script.swap("Unit_a", [move] * 5000)
    live.runtime.run(script)
    assert live.build.ask("name") == "second"


def test_a_script_is_known_by_its_token(live: Live) -> None:
    live.runtime.run(Script(), token=77)
    assert live.runtime.token == 77


def mapped(live: Live) -> int:
    """Return bytes of private writable memory."""
    rows = [row for row in live.process.maps() if row.protection == "rw-p"]
    return sum(row.end - row.start for row in rows)
