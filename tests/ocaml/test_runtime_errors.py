"""What is said when the OCaml runtime cannot be entered, or what runs in it fails."""

from collections.abc import Sequence

import numpy as np
import pytest

from reloader.errors.ocaml import (
    BusyRuntimeError,
    HookError,
    InitialiserError,
    PlaceMissingError,
    RuntimeSymbolError,
)
from reloader.hosts.caml.runtime import DynamicSymbols, Runtime
from reloader.hosts.caml.script import Place, Script
from reloader.ids import U64
from reloader.live.inject import attach
from stubs import layout
from tests.support.live import compile_program, hear, running

UNDONE = (
    "All of this reload was undone, but for what initialisers did outside of their own units. "
    "Correct it and save again."
)


def test_a_busy_runtime_is_told_with_the_time_that_was_waited() -> None:
    assert str(BusyRuntimeError(7, 10000, "the reload")) == (
        "process 7: the reload waited 10000 ms for a point where the OCaml runtime may be "
        "entered, and gave up: the program neither allocates, polls for signals, nor waits in "
        "a system call that lets go of the runtime. Nothing was changed. Save again when it "
        "has come out of that loop or C function."
    )


def test_an_exception_of_an_initialiser_is_told_with_its_backtrace() -> None:
    assert str(
        InitialiserError("Foo", "Not_found", ["Raised at Foo.f", "Called from Foo"])
    ) == (
        f"the initialiser of Foo raised Not_found. {UNDONE}\nRaised at Foo.f\nCalled from Foo"
    )


def test_an_exception_of_a_hook_is_told_with_its_backtrace() -> None:
    assert str(HookError("Foo.after", "Exit", ["Raised at Foo.after"])) == (
        f"Foo.after, which the configuration names, raised Exit. {UNDONE}\nRaised at Foo.after"
    )


def test_a_module_of_another_shape_is_told() -> None:
    assert str(PlaceMissingError("Foo")) == (
        "Foo: a field that the unit's .cmi or .cmt names is not in the module of the live "
        "program; it was built from other sources. Nothing was changed. Build the program anew "
        "and restart it."
    )


@pytest.mark.live
def test_a_program_without_a_runtime_is_refused_with_what_it_lacks() -> None:
    with running([compile_program("worker")]) as child:
        hear(child)
        process = attach(child.pid)
        with pytest.raises(RuntimeSymbolError) as caught:
            Runtime.attach(process)
        process.close()
    assert str(caught.value) == (
        f"process {child.pid}: caml_modify of the OCaml runtime was not found in the "
        "executable. Nothing was changed. OCaml 4.13 and 5.3 have it; a program that is "
        "stripped must have been linked with -Wl,-E, which is ocamlopt's default."
    )


@pytest.mark.live
def test_a_runtime_of_another_version_is_refused_with_what_it_lacks() -> None:
    with running([compile_program("worker")]) as child:
        hear(child)
        process = attach(child.pid)
        names = layout.CAML_SYMBOLS

        def of_5_2(asked: Sequence[bytes]) -> U64:
            missing = {b"caml_callback_res"}
            return np.array([name not in missing for name in asked], np.uint64) * np.uint64(8)

        with pytest.raises(RuntimeSymbolError, match="caml_callback_res of the OCaml runtime"):
            Runtime.attach(process, of_5_2)
        assert DynamicSymbols(process)(names).sum() == 0
        process.close()


def test_a_place_deeper_than_the_agent_goes_is_an_error() -> None:
    place = Place(8, (1, 2, 3, 4, 5))
    with pytest.raises(ValueError, match="a place goes through 1 to 4 blocks, not 5"):
        Script().call("f", place)
