"""Units that were superseded: what holds one is named, and what nothing holds is forgotten."""

from collections.abc import Generator
from pathlib import Path

import pytest

from reloader.hosts.caml.runtime import HOLDERS
from tests.support.caml_runtime import Live, Loaded, entered, version
from tests.support.ocaml import Build, Compiler, build, compiler_of

pytestmark = pytest.mark.live

HOST = """
let captured = ref []
let traces = ref []
let weak = Weak.create 1
let static = ref ""
let rec spin n =
  ignore (List.init 100 string_of_int);
  if n mod 10 = 0 then Gc.full_major () else Gc.compact ();
  if Part.f n < n then failwith "wrong";
  match Unix.select [ Unix.stdin ] [] [] 0. with
  | [], _, _ -> spin (n + 1)
  | _ -> string_of_int n
let answer line =
  match line with
  | "f" -> string_of_int (Part.f 0)
  | "capture" -> captured := [ Part.f ]; "done"
  | "trace" -> (try ignore (Part.f (-1)) with _ -> traces := [ Printexc.get_raw_backtrace () ]); "done"
  | "weak" -> Weak.set weak 0 (Some Part.name); "done"
  | "release" -> captured := []; traces := []; Weak.set weak 0 None; "done"
  | "raise" -> (try ignore (Part.f (-1)); "none" with _ -> "raised")
  | "lines" -> String.concat "|" (String.split_on_char '\\n' (Printexc.get_backtrace ()))
  | "spin" -> print_endline "spinning"; spin 1
  | "fill" -> captured := List.init 50_000 (fun n m -> n + m); "done"
  | "within" -> "left " ^ string_of_int (Part.hold (fun () -> print_endline "within"; String.length (read_line ())))
  | _ -> "what?"
let () =
  Printexc.record_backtrace true;
  print_endline "ready";
  try while true do print_endline (answer (read_line ())) done with End_of_file -> ()
"""
THREAD_HOST = """
let lines = ref "" and step = ref 0
let lock = Mutex.create () and changed = Condition.create ()
let wait_for n =
  Mutex.lock lock;
  while !step < n do Condition.wait changed lock done;
  Mutex.unlock lock
let move n = Mutex.lock lock; step := n; Condition.broadcast changed; Mutex.unlock lock
let body () =
  (try ignore (Part.hold (fun () -> move 1; wait_for 2; raise Exit))
   with Exit -> move 3; wait_for 4);
  lines := Printexc.get_backtrace ()
let thread = ref None
let answer = function
  | "start" -> thread := Some (Thread.create body ()); wait_for 1; "started"
  | "within" -> move 2; wait_for 3; "leave"
  | "end" ->
      move 4;
      Option.iter Thread.join !thread;
      "ended " ^ String.concat "|" (String.split_on_char '\\n' !lines)
  | _ -> "what?"
let () =
  Printexc.record_backtrace true;
  print_endline "ready";
  try while true do print_endline (answer (read_line ())) done with End_of_file -> ()
"""
DOMAIN_HOST = """
let step = Atomic.make 0
let wait_for n = while Atomic.get step < n do Domain.cpu_relax () done
let domain = ref None
let answer = function
  | "start" ->
      let body () = Part.hold (fun () -> Atomic.set step 1; wait_for 2; 7) in
      domain := Some (Domain.spawn body); wait_for 1; "started"
  | "end" -> Atomic.set step 2; Option.iter (fun d -> ignore (Domain.join d)) !domain; "ended"
  | _ -> "what?"
let () =
  print_endline "ready";
  try while true do print_endline (answer (read_line ())) done with End_of_file -> ()
"""
PART_HOLD = """
let number = %d
let hold f = let n = f () in n + number
"""
HOLD_TYPE = "val number : int\nval hold : (unit -> int) -> int\n"
PART = """
let name = "the name"
let large = List.init 100 (fun n -> (n, string_of_int n))
let f n = if n < 0 then raise Not_found else n + List.length large - 100 + %d
let hold f = let n = f () in n + 1
"""
PART_TYPE = "val name : string\nval f : int -> int\nval hold : (unit -> int) -> int\n"


@pytest.fixture(scope="module")
def host(compiler: Compiler, tmp_path_factory: pytest.TempPathFactory) -> Build:
    texts = {"main.ml": HOST, "part.ml": PART % 0, "part.mli": PART_TYPE}
    return build(compiler, tmp_path_factory.mktemp("host"), texts, packages=["unix"])


@pytest.fixture
def threaded(compiler: Compiler, tmp_path: Path) -> Build:
    texts = {"main.ml": THREAD_HOST, "part.ml": PART_HOLD % 0, "part.mli": HOLD_TYPE}
    return build(compiler, tmp_path, texts, packages=["threads.posix"])


@pytest.fixture
def live(host: Build) -> Generator[Live]:
    with entered(host) as found:
        yield found


@pytest.fixture(scope="module")
def versions(host: Build) -> list[Path]:
    return [version(host, "part", PART % number) for number in (1, 2)]


def swap(live: Live, path: Path) -> Loaded:
    return live.swap(path, [0, 1, 2] if live.build.folder.name.startswith("host") else [0, 1])[
        0
    ]


def holder(live: Live, unit: Loaded) -> str:
    return HOLDERS[live.runtime.retire([unit.place.code_begin])[0].kind]


def test_the_live_version_is_held_by_the_module_that_others_know(
    live: Live, versions: list[Path]
) -> None:
    first = swap(live, versions[0])
    done = live.runtime.retire([first.place.code_begin])[0]
    assert HOLDERS[done.kind] == "a module"
    assert live.block("Part") <= done.holder < live.block("Part") + 16
    assert first.place.data_begin <= done.word < first.place.data_end
    assert live.build.ask("f") == "1"


def test_a_superseded_version_is_forgotten_and_its_memory_used_again(
    live: Live, versions: list[Path]
) -> None:
    first = swap(live, versions[0])
    swap(live, versions[1])
    assert holder(live, first) == "nothing"
    live.drop(first)
    third = swap(live, versions[0])
    assert third.place.block == first.place.block
    assert live.build.ask("f") == "1"
    assert holder(live, first) == "a module"  # the same address is another unit now


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        ("capture", "a block of the heap"),
        ("trace", "a backtrace"),
        ("weak", "a block of the heap"),
    ],
)
def test_what_holds_a_superseded_version_is_named(
    live: Live, versions: list[Path], way: str, kind: str
) -> None:
    first = swap(live, versions[0])
    assert live.build.ask(way) == "done"
    swap(live, versions[1])
    assert holder(live, first) == kind
    assert live.build.ask("release") == "done"
    assert holder(live, first) == "nothing"


def test_a_backtrace_that_nobody_asked_for_yet_loses_the_lines_of_a_forgotten_version(
    live: Live, versions: list[Path]
) -> None:
    first = swap(live, versions[0])
    assert live.build.ask("raise") == "raised"
    swap(live, versions[1])
    assert holder(live, first) == "nothing"
    live.drop(first)
    assert "main.ml" in live.build.ask("lines")
    assert live.build.ask("raise") == "raised"
    assert "part.ml" in live.build.ask("lines")


def test_unknown_units_are_told(live: Live) -> None:
    assert [row.kind for row in live.runtime.retire([4096, 8192])] == [6, 6]


def test_versions_that_hold_each_other_are_forgotten_together(live: Live) -> None:
    text = (
        PART + "let loop = ref [ f ]\nlet () = loop := [ (fun n -> f n + List.length !loop) ]\n"
    )
    units = [swap(live, version(live.build, "part", text % n)) for n in range(4)]
    done = live.runtime.retire([unit.place.code_begin for unit in units])
    assert [row.gone for row in done] == [True, True, True, False]


def test_two_hundred_swaps_under_compaction_leave_memory_flat(
    live: Live, versions: list[Path]
) -> None:
    assert live.build.ask("spin") == "spinning"
    superseded: list[Loaded] = []
    newest = swap(live, versions[0])
    sizes: list[int] = []
    for number in range(200):
        superseded.append(newest)
        newest = swap(live, versions[number % 2])
        forget(live, superseded)
        if number % 50 == 49:
            sizes.append(resident(live))
    assert max(sizes) - min(sizes) < 512 << 10
    assert int(live.build.ask("stop")) > 0
    forget(live, superseded)
    assert superseded == []


def forget(live: Live, superseded: list[Loaded]) -> None:
    """Forget all that can be; the program may stand in one that was live a moment ago."""
    done = live.runtime.retire([unit.place.code_begin for unit in superseded])
    for unit, row in zip(list(superseded), done, strict=True):
        if row.gone:
            live.drop(unit)
            superseded.remove(unit)
        else:
            assert HOLDERS[row.kind] == "a stack"


def test_a_suspended_fiber_holds_the_version_that_it_runs(tmp_path: Path) -> None:
    program = build(compiler_of("5.3"), tmp_path, "effects")
    text = (tmp_path / "task.ml").read_text()
    with entered(program) as live:
        kept = [(0, 0)]  # the effect's constructor
        first, _ = live.swap(
            version(program, "task", text.replace('"old"', '"new"')), [1, 2], kept
        )
        assert program.ask("start a") == "1"
        live.swap(version(program, "task", text.replace('"old"', '"newer"')), [1, 2], kept)
        assert holder(live, first) != "nothing"
        assert [program.ask(word) for word in ("compact", "step", "step", "step")] == [
            "compacted", "", "", "new a 6",
        ]  # fmt: skip
        assert program.ask("compact") == "compacted"
        assert holder(live, first) == "nothing"
        live.drop(first)
        assert program.ask("start b") == "1"
        assert [program.ask("step") for _ in range(3)][-1] == "newer b 6"


def test_a_function_that_is_under_way_holds_its_version(
    live: Live, versions: list[Path]
) -> None:
    first = swap(live, versions[0])
    assert live.build.ask("within") == "within"
    swap(live, versions[1])
    assert holder(live, first) == "a stack"
    assert live.build.ask("leave") == "left 6"
    assert holder(live, first) == "nothing"


def test_threads_hold_the_version_that_they_run_and_keep_their_backtraces(
    threaded: Build,
) -> None:
    with entered(threaded) as live:
        first = swap(live, version(threaded, "part", PART_HOLD % 1))
        assert threaded.ask("start") == "started"
        second = swap(live, version(threaded, "part", PART_HOLD % 2))
        assert holder(live, first) == "a stack"
        assert threaded.ask("within") == "leave"  # the thread's handler runs and waits again
        assert holder(live, first) == "nothing"
        live.drop(first)
        assert threaded.ask("end").startswith("ended ")
        assert holder(live, second) == "a module"


def test_a_domain_holds_the_version_that_it_runs(tmp_path: Path) -> None:
    texts = {"main.ml": DOMAIN_HOST, "part.ml": PART_HOLD % 0, "part.mli": HOLD_TYPE}
    program = build(compiler_of("5.3"), tmp_path, texts, packages=["unix"])
    with entered(program) as live:
        first = swap(live, version(program, "part", PART_HOLD % 1))
        assert program.ask("start") == "started"
        swap(live, version(program, "part", PART_HOLD % 2))
        assert holder(live, first) == "a stack"
        assert program.ask("end") == "ended"
        assert holder(live, first) == "nothing"


def test_a_mark_that_takes_too_long_is_given_up(live: Live, versions: list[Path]) -> None:
    assert live.build.ask("fill") == "done"
    first = swap(live, versions[0])
    swap(live, versions[1])
    done = live.runtime.retire([first.place.code_begin], budget_us=1)[0]
    assert HOLDERS[done.kind] == "a heap too large for the time given"
    assert holder(live, first) == "nothing"


def resident(live: Live) -> int:
    """Return bytes of private memory that the program has in RAM."""
    text = Path(f"/proc/{live.process.pid}/smaps_rollup").read_text()
    rows = [line.split() for line in text.splitlines()]
    return sum(int(row[1]) << 10 for row in rows if row[0].startswith("Private"))
