"""The OCaml programs that are measured: they see and time their own reloads.

Versions of the unit differ in one number of its compiled bytes, as in `target`.
"""

import struct
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from reloader.session.session import Session
from tests.support.ocaml import Build, Compiler, build

MARKER: Final = 0x2EED0000
_TAGGED: Final = struct.pack("<I", 2 * MARKER + 1)
SMALL, LARGE = 3, 300  # functions of ten lines

_MAIN: Final = """
let rec watch pause last =
  let seen = Part.version () in
  if seen <> last then Printf.printf "%d %.6f\\n%!" seen (Unix.gettimeofday ());
  pause ();
  watch pause seen

let collect turn =
  incr turn;
  Gc.full_major ();
  if !turn mod 8 = 0 then Gc.compact ()

let rec answer () =
  match input_line stdin with
  | "" -> ()
  | _ -> Printf.printf "%d %.6f\\n%!" (Part.version ()) (Unix.gettimeofday ()); answer ()
  | exception End_of_file -> ()

let spin () =
  let n = ref 0 in
  while Part.version () > 0 do n := !n + Part.work0 !n done
DOMAINS
let () =
  print_endline "ready";
  match Sys.argv.(1) with
  | "computing" -> watch ignore (Part.version ())
  | "sleeping" -> watch (fun () -> Unix.sleepf 0.00002) (Part.version ())
  | "collecting" -> let turn = ref 0 in watch (fun () -> collect turn) (Part.version ())
  | _ -> domains ()
"""

# two busy ones beside the main one, which waits for lines
_DOMAINS: Final = """
let domains () =
  for _ = 1 to 2 do ignore (Domain.spawn spin) done;
  answer ();
  exit 0
"""
_NONE: Final = "let domains () = spin (); answer ()"

_HEAD: Final = f"""let total = ref 0
let version () = Sys.opaque_identity {MARKER:#x}
"""

_WORK: Final = """
let work%(row)d n =
  incr total;
  let doubled = List.map (fun x -> x * 2) [ n; n + %(row)d; !total ] in
  match doubled with
  | a :: _ when a > 1_000_000 -> failwith "work%(row)d"
  | a :: b :: _ ->
      let sum = List.fold_left ( + ) 0 doubled in
      if a > b then sum - b else sum + a
  | rest -> List.length rest
"""

_PLUGGED: Final = """
let ask = ref (fun () -> 0)
"""
_RIVAL: Final = """
let () =
  print_endline "ready";
  try
    while true do
      Dynlink.loadfile (input_line stdin);
      let seen = !Plugged.ask () in
      Printf.printf "%d %.6f\\n%!" seen (Unix.gettimeofday ())
    done
  with End_of_file -> ()
"""


def work(functions: int) -> str:
    """Return the text of the unit that changes."""
    return _HEAD + "".join(_WORK % {"row": row} for row in range(functions))


class Versions:
    """A compiled unit, and any number of versions of it."""

    def __init__(self, path: Path) -> None:
        """Take a compiled object as the pattern."""
        self.path = path
        self.pattern = path.read_bytes()
        assert self.pattern.count(_TAGGED) == 1
        self.part = path.with_suffix(".part")

    def content(self, number: int) -> bytes:
        """Return a version: its function returns MARKER + number."""
        tagged = struct.pack("<I", 2 * (MARKER + number) + 1)
        return self.pattern.replace(_TAGGED, tagged)

    def write(self, number: int) -> Path:
        """Write a finished version beside the object, ready to be renamed."""
        self.part.write_bytes(self.content(number))
        return self.part


def program_of(compiler: Compiler, folder: Path, functions: int) -> tuple[Build, Versions]:
    """Build the program; its unit has so many functions."""
    folder.mkdir()
    main = _MAIN.replace("DOMAINS", _DOMAINS if compiler.multicore else _NONE)
    texts = {"part.ml": work(functions), "main.ml": main}
    program = build(compiler, folder, texts, packages=["unix"])
    command = " ".join(compiler.command)
    (folder / "reloader.toml").write_text(f'[ocaml]\ncompiler = "{command}"\n')
    return program, Versions(folder / "part.o")


@contextmanager
def attached(program: Build, way: str) -> Generator[Session]:
    """Start the program and attach a session to it; end both with the block."""
    pid = program.start(way)
    session = Session.attach(pid, program.folder, [str(program.folder / "part.o")])
    try:
        yield session
    finally:
        end(program)
        session.close()


def end(program: Build) -> None:
    """End a program that never ends by itself."""
    assert program.process is not None
    program.process.kill()
    program.stop()


def seen(program: Build) -> tuple[int, float]:
    """Return the next (version, seconds since the epoch) that the program saw."""
    number, at = program.line().split()
    return int(number) - MARKER, float(at)


def reload_session(session: Session, versions: Versions, numbers: Sequence[int]) -> list[float]:
    """Reload versions one behind the other; return how long each took, with what is freed."""
    times: list[float] = []
    for number in numbers:
        content = [(str(versions.path), versions.content(number))]
        began = time.perf_counter()
        outcome = session.reload_contents(content, time.monotonic())
        times.append((time.perf_counter() - began) * 1e3)
        assert outcome.state == "live", outcome.error
        session.retiring.attempt()
    return times


def dynlink_times(compiler: Compiler, folder: Path, times: int) -> list[float]:
    """Return the milliseconds that compiled units of fresh names take as plugins."""
    folder.mkdir()
    packages = ["unix", "dynlink"]
    texts = {"plugged.ml": _PLUGGED, "rival.ml": _RIVAL}
    rival = Build(compiler, folder, opaque=True, packages=packages, link_flags=["-linkall"])
    rival.write(texts)
    rival.build()
    plugins = [f"fresh{number}" for number in range(times)]
    register = "let () = Plugged.ask := version\n"
    for name in plugins:
        rival.write({f"{name}.ml": work(SMALL) + register})
        rival.compile(f"{name}.ml")
    rival.start()
    try:
        return [plug(compiler, rival, name) for name in plugins]
    finally:
        end(rival)


def plug(compiler: Compiler, rival: Build, name: str) -> float:
    """Link one plugin and load it; return the milliseconds until its code ran."""
    assert rival.process is not None
    assert rival.process.stdin is not None
    shared = rival.folder / f"{name}.cmxs"
    began = time.time()
    command = (str(compiler.bin / "ocamlopt"), "-shared", f"{name}.cmx", "-o", shared.name)
    compiler.run(*command, cwd=rival.folder)
    rival.process.stdin.write(f"{shared}\n")
    rival.process.stdin.flush()
    number, at = seen(rival)
    assert number == 0
    return (at - began) * 1e3
