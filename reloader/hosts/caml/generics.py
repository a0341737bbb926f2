"""Functions that the compiler makes at link time, for units that are loaded later.

`caml_curryN`, `caml_applyN`, `caml_tuplifyN` and `caml_sendN` are in no library: ocamlopt
writes those that an executable needs into its start-up file. A new unit may need others. So the
compiler is asked once, by a unit that needs them all, for a start-up file (`-dstartup`); it is
cut into one object a function with what belongs to it, in an archive from which a link pulls
what is missing. Each object has the symbols of a unit: frame table, code and data limits, an
initialiser that does nothing. What a program has is never pulled, so nothing is defined twice.
"""

import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from reloader.elf.object import ObjectFile
from reloader.errors.ocaml import GenericsError
from reloader.hosts.caml.compiler import Compiler, build_in, cache_folder, compiler_digest
from reloader.hosts.caml.units import UnitInfo

MOST: Final = 32  # arguments, and fields of a tuple
PREFIX: Final = "Reloader_"  # of the units' names
VERSION: Final = "1"  # of what is written here
# `caml_curry3`, and with it `caml_curry3_1` and `caml_curry3_1_app`
FUNCTION: Final = re.compile(
    r"^\t\.globl\t(caml_(?:curry|apply|tuplify|send)\d+)(_\w+)?$", re.MULTILINE
)
TABLE: Final = re.compile(
    r"^caml_shared_startup(__|\.)frametable:\n\t\.quad\t(\d+)\n", re.MULTILINE
)
LABEL: Final = re.compile(r"^(\.L\d+):", re.MULTILINE)
UNIT: Final = """\
	.data
	.globl	{unit}data_begin
{unit}data_begin:
	.quad	1792
	.globl	{block}
{block}:
	.quad	1
	.globl	{unit}gc_roots
{unit}gc_roots:
	.quad	0
	.text
	.globl	{unit}code_begin
{unit}code_begin:
{code}	.align	16
	.globl	{unit}entry
{unit}entry:
	.cfi_startproc
	movl	$1, %eax
	ret
	.cfi_endproc
	.type {unit}entry,@function
	.size {unit}entry,. - {unit}entry
	.globl	{unit}code_end
{unit}code_end:
	.data
	.quad	0
	.globl	{unit}data_end
{unit}data_end:
	.quad	0
	.align	8
	.globl	{unit}frametable
{unit}frametable:
	.quad	{count}
{frames}	.align	8
	.section .note.GNU-stack,"",%progbits
"""


def generic_archive(compiler: Compiler, cache: Path | None = None) -> Path:
    """Return the archive of a compiler's generic functions; it is made if it is not there.

    Raises:
        GenericsError: The compiler or assembler failed.
    """
    folder = cache or cache_folder()
    archive = folder / f"generic-{compiler.version}-{compiler_digest(compiler, VERSION)}.a"
    if not archive.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as name:
            _make(compiler, Path(name)).replace(archive)
    return archive


def is_generic(file: ObjectFile) -> bool:
    """Return whether an object is one of ours, which no .cmi describes."""
    return file.member.startswith(PREFIX)


def generic_unit(file: ObjectFile) -> UnitInfo:
    """Return the description of one of our objects: it has no fields and relies on nothing."""
    return UnitInfo(
        name=Path(file.member).stem,
        interface_crc="",
        imports={},
        opaque=True,
        complete=True,
        source=None,
        interface=(),
        implementation=None,
        field_count=1,
        slots=(),
        types=(),
        constructors=(),
    )


def user_of_all() -> str:
    """Return the source of a unit that needs every generic function."""
    lines = ["let keep x = ignore (Sys.opaque_identity x)", "let s1 o = o#m"]
    for count in range(2, MOST + 1):
        names = [f"a{row}" for row in range(count)]
        total = "+".join(names)
        lines += [
            f"let f{count} = fun {' '.join(names)} -> {total}",
            f"let () = keep f{count}",
            f"let t{count} = fun ({','.join(names)}) -> {total}",
            f"let () = keep t{count}",
            f"let g{count} f = f {' '.join('0' * count)}",
            f"let s{count} o = o#m {' '.join('0' * (count - 1))}",
        ]
    return "\n".join(lines)


def split_startup(text: str) -> Iterator[tuple[str, str]]:
    """Yield (unit, assembly) of each generic function of a start-up file.

    Raises:
        ValueError: The file is not laid out as expected.
    """
    table = TABLE.search(text)
    if table is None:
        problem = "it has no frame table"
        raise ValueError(problem)
    codes = _families(text[: table.start()])
    owner = {label: name for name, code in codes.items() for label in LABEL.findall(code)}
    frames: dict[str, list[str]] = {name: [] for name in codes}
    for frame in _frames(text[table.end() :]):
        label = frame.split(maxsplit=2)[1]
        if label not in owner:
            problem = f"the frame of {label} belongs to no generic function"
            raise ValueError(problem)
        frames[owner[label]].append(frame)
    if (count := sum(map(len, frames.values()))) != int(table[2]):
        problem = f"its frame table has {count} entries and says {table[2]}"
        raise ValueError(problem)
    for name, code in codes.items():
        unit = PREFIX + name.removeprefix("caml_")
        yield (
            unit,
            UNIT.format(
                block=f"caml{unit}",
                unit=f"caml{unit}{table[1]}",
                code=code,
                count=len(frames[name]),
                frames="".join(frames[name]),
            ),
        )


def _families(text: str) -> dict[str, str]:
    """Return the code of each generic function with its helpers, by the function's name."""
    found = list(FUNCTION.finditer(text))
    codes: dict[str, str] = {}
    for match in found:
        end = re.compile(rf"^\t\.size {match[1]}{match[2] or ''},.*\n", re.MULTILINE)
        last = end.search(text, match.end())
        if last is None:
            problem = f"{match[0].split()[-1]} has no end"
            raise ValueError(problem)
        code = f"\t.align\t16\n{text[match.start() : last.end()]}"
        codes[match[1]] = codes.get(match[1], "") + code
    return codes


def _frames(text: str) -> Iterator[str]:
    """Yield the entries of a frame table: a return address, and what is alive there."""
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        if line.startswith("\t.quad\t.L") and not lines:
            lines = [line]
        elif lines:
            lines.append(line)
            if line.startswith("\t.align"):
                yield "".join(lines)
                lines = []


def _make(compiler: Compiler, folder: Path) -> Path:
    """Compile, cut and assemble; return the archive."""
    (folder / "all.ml").write_text(user_of_all(), encoding="utf-8")
    for words in (["-c", "all.ml"], ["-shared", "-dstartup", "all.cmx", "-o", "all.cmxs"]):
        done = build_in(folder, compiler, words)
        if done.returncode:
            raise GenericsError(compiler.version, done.stdout)
    startup = (folder / "all.cmxs.startup.s").read_text(encoding="utf-8")
    try:
        units = list(split_startup(startup))
    except ValueError as error:
        raise GenericsError(compiler.version, f"all.cmxs.startup.s: {error}") from error
    for unit, text in units:
        source = folder / f"{unit}.s"
        source.write_text(text, encoding="utf-8")
        _run(compiler, folder, *shlex.split(compiler.assembler), source.name, "-o", f"{unit}.o")
    _run(compiler, folder, "ar", "rcs", "generic.a", *(f"{unit}.o" for unit, _ in units))
    return folder / "generic.a"


def _run(compiler: Compiler, folder: Path, *words: str) -> None:
    # the assembler that the compiler itself uses
    done = subprocess.run(  # noqa: S603
        words, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise GenericsError(compiler.version, done.stderr)
