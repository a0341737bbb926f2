"""What stands in the way of replacing a unit of an OCaml program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reloader.errors.base import UNTOUCHED, RefusedError, ReloaderError
from reloader.errors.ocaml_units import listed

if TYPE_CHECKING:
    from collections.abc import Sequence


class NoUnitsError(ReloaderError):
    """A program does not tell which OCaml units it was linked from."""

    code = "ocaml-no-units"

    def __init__(self, program: str, problem: str) -> None:
        self.program, self.problem = program, problem
        super().__init__(
            f"{program}: the list of its OCaml units was not found: {problem}. {UNTOUCHED} "
            "Link it with ocamlopt, and strip it with --strip-debug at most if it is static."
        )


class NoCompilerError(ReloaderError):
    """The OCaml compiler of the project was not found."""

    code = "ocaml-no-compiler"

    def __init__(self, tried: Sequence[str], problem: str = "") -> None:
        self.tried, self.problem = tuple(tried), problem
        because = f": {problem}" if problem else ""
        super().__init__(
            f"no OCaml compiler answers ({', '.join(tried)}){because}. {UNTOUCHED} Name the "
            'project\'s own in reloader.toml: [ocaml] compiler = "ocamlfind ocamlopt"'
        )


class CompilerLibrariesError(ReloaderError):
    """The compiler's own libraries, which read what it writes, are not installed."""

    code = "ocaml-no-compiler-libs"

    def __init__(self, version: str, where: str) -> None:
        self.version, self.where = version, where
        package = (
            "ocaml-compiler-libs" if version.startswith("4.") else "libcompiler-libs-ocaml-dev"
        )
        super().__init__(
            f"OCaml {version} cannot tell what is in a unit: {where}/compiler-libs has no "
            f"ocamlcommon.cmxa. {UNTOUCHED} Install it: apt install {package}"
        )


class InspectorBuildError(ReloaderError):
    """The compiler did not compile our reader of its files."""

    code = "ocaml-inspector"

    def __init__(self, version: str, output: str) -> None:
        self.version, self.output = version, output
        super().__init__(
            f"OCaml {version} did not compile the program that reads its .cmi and .cmt files; "
            f"4.13 and 5.3 do. {UNTOUCHED} It said:\n{output.strip()}"
        )


class GenericsError(ReloaderError):
    """The compiler's functions for calls of many arguments could not be made ready."""

    code = "ocaml-generics"

    def __init__(self, version: str, output: str) -> None:
        self.version, self.output = version, output
        super().__init__(
            f"OCaml {version}: its functions for calls of any number of arguments could not be "
            f"made; 4.13's and 5.3's can. {UNTOUCHED} It said:\n{output.strip()}"
        )


class UnitUnreadableError(RefusedError):
    """A unit's compiled files could not be read."""

    code = "ocaml-unreadable"

    def __init__(self, object_name: str, kind: str, problem: str) -> None:
        self.object_name, self.kind, self.problem = object_name, kind, problem
        remedies = {
            "version": "Build the unit and the program with one compiler.",
            "packed": "Units of a pack cannot be replaced; link them one by one.",
        }
        remedy = remedies.get(kind, "Build it again.")
        super().__init__(f"{object_name}: {problem}. {UNTOUCHED} {remedy}")


class MissingInterfaceError(RefusedError):
    """There is no .cmi for an object."""

    code = "ocaml-no-interface"

    def __init__(self, object_name: str, looked_for: Sequence[str]) -> None:
        self.object_name, self.looked_for = object_name, tuple(looked_for)
        super().__init__(
            f"{object_name}: its interface was not found; looked for {', '.join(looked_for)}. "
            f"{UNTOUCHED} Without the .cmi nothing tells whether it fits the program: build "
            "the unit where its object lies."
        )


class OtherCompilerError(RefusedError):
    """The program was compiled with another compiler than the project's."""

    code = "ocaml-other-compiler"

    def __init__(  # noqa: PLR0913, PLR0917  one argument a fact
        self, program: str, unit: str, live: str, version: str, where: str, crc: str
    ) -> None:
        self.program, self.unit, self.live, self.version, self.crc = (
            program, unit, live, version, crc,
        )  # fmt: skip
        super().__init__(
            f"{program} was not compiled by OCaml {version}: its {unit} has interface {live}, "
            f"the one in {where} {crc}. {UNTOUCHED} Name the program's compiler in "
            'reloader.toml ([ocaml] compiler = "…"), or build the program anew.'
        )


class FlambdaError(RefusedError):
    """The compiler optimises across functions in a way that fixes nothing of a unit's shape."""

    code = "ocaml-flambda"

    def __init__(self, version: str, where: str) -> None:
        self.version, self.where = version, where
        super().__init__(
            f"OCaml {version} in {where} was configured with flambda, which lays out units in "
            f"its own way. {UNTOUCHED} Use a compiler without flambda for development."
        )


class RuntimeSymbolError(RefusedError):
    """The program lacks a part of the OCaml runtime that replacing a unit needs."""

    code = "ocaml-runtime"

    def __init__(self, pid: int, symbol: str) -> None:
        self.pid, self.symbol = pid, symbol
        super().__init__(
            f"process {pid}: {symbol} of the OCaml runtime was not found in the executable. "
            f"{UNTOUCHED} OCaml 4.13 and 5.3 have it; a program that is stripped must have "
            "been linked with -Wl,-E, which is ocamlopt's default."
        )


class BusyRuntimeError(ReloaderError):
    """The program did not come to a point where OCaml code can be replaced."""

    code = "ocaml-busy"

    def __init__(self, pid: int, limit_ms: int, what: str) -> None:
        self.pid, self.limit_ms, self.what = pid, limit_ms, what
        super().__init__(
            f"process {pid}: {what} waited {limit_ms} ms for a point where the OCaml runtime "
            "may be entered, and gave up: the program neither allocates, polls for signals, "
            f"nor waits in a system call that lets go of the runtime. {UNTOUCHED} Save again "
            "when it has come out of that loop or C function."
        )


class InitialiserError(RefusedError):
    """A unit's initialiser raised an exception."""

    code = "ocaml-initialiser"

    def __init__(
        self, unit: str, exception: str, backtrace: Sequence[str], still_known: int = 0
    ) -> None:
        self.unit, self.exception, self.backtrace = unit, exception, tuple(backtrace)
        # units of the transaction that something holds: the runtime knows them until retired
        self.still_known = still_known
        trace = "".join(f"\n{line}" for line in backtrace)
        super().__init__(
            f"the initialiser of {unit} raised {exception}. All of this reload was undone, but "
            "for what initialisers did outside of their own units. Correct it and save again."
            f"{trace}"
        )


class HookError(RefusedError):
    """A function that the configuration names for around a swap raised an exception."""

    code = "ocaml-hook"

    def __init__(
        self, name: str, exception: str, backtrace: Sequence[str], still_known: int = 0
    ) -> None:
        self.name, self.exception, self.backtrace = name, exception, tuple(backtrace)
        self.still_known = still_known
        trace = "".join(f"\n{line}" for line in backtrace)
        super().__init__(
            f"{name}, which the configuration names, raised {exception}. All of this reload "
            "was undone, but for what initialisers did outside of their own units. Correct it "
            f"and save again.{trace}"
        )


class PlaceMissingError(RefusedError):
    """A module of the live program has not the shape that its unit says."""

    code = "ocaml-place"

    def __init__(self, what: str, still_known: int = 0) -> None:
        self.what, self.still_known = what, still_known
        super().__init__(
            f"{what}: a field that the unit's .cmi or .cmt names is not in the module of the "
            f"live program; it was built from other sources. {UNTOUCHED} Build the program "
            "anew and restart it."
        )


class UnfitUnitError(RefusedError):
    """The compiled files beside an object are not those of the version that runs."""

    code = "ocaml-other-version"

    def __init__(self, object_name: str, unit: str) -> None:
        self.object_name, self.unit = object_name, unit
        super().__init__(
            f"{object_name}: the .cmi or .cmx beside it is not that of the {unit} in the "
            f"program, so nothing tells what its values are. {UNTOUCHED} Build the program "
            "anew and restart it."
        )


class RunningUnitError(RefusedError):
    """A unit's initialiser is what the program runs."""

    code = "ocaml-running"

    def __init__(self, object_name: str, unit: str) -> None:
        self.object_name, self.unit = object_name, unit
        super().__init__(
            f"{object_name}: the program is inside the toplevel of {unit}, which would be"
            f" run a second time beside itself. {UNTOUCHED} Restart the program for this"
            " change; what is to be reloaded belongs into units that the loop calls."
        )


class NoSuchFunctionError(RefusedError):
    """The configuration names a function that no unit has."""

    code = "ocaml-no-function"

    def __init__(self, name: str, units: Sequence[str]) -> None:
        self.name, self.units = name, tuple(units)
        super().__init__(
            f"reloader.toml names {name} in [ocaml], and no unit of the program has such a "
            f"toplevel function; its reloadable units are {', '.join(units)}. {UNTOUCHED}"
        )


class BlockedInitialiserError(ReloaderError):
    """An initialiser waits in a system call or a C function, and the program with it."""

    code = "ocaml-blocked"

    def __init__(self, units: Sequence[str], seconds: float) -> None:
        self.units, self.seconds = tuple(units), seconds
        super().__init__(
            f"the initialiser of {' or '.join(units)} has been in a system call or a C function"
            f" for longer than the {seconds:g} s that it may take ([ocaml] initialiser_s). It"
            " is interrupted once that returns, and all of this reload is undone; until then"
            " the version before is live, and nothing else is reloaded. Take the wait out of"
            " the unit's toplevel and save again."
        )


class ForkedError(RefusedError):
    """The program is more than one process, and a unit is known to the runtime of one."""

    code = "ocaml-forked"

    def __init__(self, pid: int, children: Sequence[int]) -> None:
        self.pid, self.children = pid, tuple(children)
        found = listed([str(child) for child in children])
        if not children:
            what = f"process {pid} forks again and again"
        elif len(children) == 1:
            what = f"process {pid} has forked {found}, which runs on beside it"
        else:
            what = f"process {pid} has forked {found}, which run on beside it"
        super().__init__(
            f"{what}: OCaml units are replaced only while the program is one process, since"
            f" the runtime of a child would not know them. {UNTOUCHED} Save again once its"
            " children have ended or called exec, or restart it."
        )
