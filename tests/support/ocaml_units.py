"""Units for tests: one compiler's inspector, kept between runs, and units from their texts."""

import atexit
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from reloader.elf.image import Image, read_image
from reloader.elf.read import read_object
from reloader.hosts.caml.compiler import Compiler as Command
from reloader.hosts.caml.compiler import find_compiler
from reloader.hosts.caml.inspector import Inspector, find_unit_files
from reloader.hosts.caml.unit_object import UnitObject, read_unit
from reloader.hosts.caml.units import UnitInfo
from tests.support.ocaml import ROOT, Build, Compiler

CACHE = ROOT / ".work" / "ocaml-cache"


@cache
def command(compiler: Compiler) -> Command:
    """Return a test's compiler as the reloader has it."""
    return find_compiler(shlex.join(compiler.command))


@cache
def inspector(compiler: Compiler) -> Inspector:
    """Return the one inspector of a compiler; it ends with the tests."""
    made = Inspector(command(compiler), CACHE)
    atexit.register(made.close)
    return made


def described(compiler: Compiler, unit: Path) -> UnitInfo:
    """Return what the compiled files beside an object say."""
    return inspector(compiler).unit(find_unit_files(unit))


def compiled(
    compiler: Compiler, folder: Path, sources: Mapping[str, str], *, opaque: bool = True
) -> list[UnitInfo]:
    """Compile sources one after the other; return the units of the .ml files."""
    build = Build(compiler, folder, opaque)
    build.write(sources)
    objects = [build.compile(name) for name in sources]
    return [described(compiler, file) for file in objects if file.with_suffix(".ml").exists()]


def unit(compiler: Compiler, folder: Path, text: str, interface: str = "") -> UnitInfo:
    """Compile and describe one unit, `Foo`."""
    sources = {"foo.mli": interface} if interface else {}
    (folder / "foo.mli").unlink(missing_ok=True)
    return compiled(compiler, folder, {**sources, "foo.ml": text})[-1]


def unit_object(file: Path) -> UnitObject:
    """Return what an object says of its unit."""
    found = read_unit(read_object(str(file), file.read_bytes()))
    assert found is not None, file
    return found


def image_of(file: Path) -> Image:
    """Return an executable's image."""
    return read_image(np.fromfile(file, np.uint8), 0, str(file))
