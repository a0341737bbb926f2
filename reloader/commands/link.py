"""`reloader link`: the linker alone, for engineers and tests; no daemon is involved."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reloader.commands.common import json_option, progress
from reloader.errors.linker import OnlyUnexecutedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from reloader.linker.request import Request, Result


def address(text: str) -> int:
    """Return the number that `0x…` or a decimal means.

    Raises:
        BadParameter: It is none of 64 bits.
    """
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 64:
        message = f"`{text}` is not an address of 64 bits"
        raise click.BadParameter(message)
    return number


def _address(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    return None if value is None else address(value)


def _pairs(
    _ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> list[tuple[str, str]]:
    """Take `NAME=VALUE` apart."""
    pairs: list[tuple[str, str]] = []
    for text in values:
        left, equals, right = text.rpartition("=")
        if not equals or not left or not right:
            message = f"`{text}` is not of the form {param.metavar}"
            raise click.BadParameter(message)
        pairs.append((left, right))
    return pairs


def _option(*names: str, **given: Any) -> Callable[[Any], Any]:  # noqa: ANN401 - click's own
    return click.option(*names, multiple=True, **given)


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--noexec", is_flag=True, help="Link into our own memory and run nothing.")
@click.option("--entry", default="main", metavar="SYM", help="The function to call (main).")
@_option("--args", metavar="ARG", help="An argument of the entry; may be given several times.")
@_option(
    "--define-abs", callback=_pairs, metavar="NAME=ADDR", help="Define a name as an address."
)
@_option("--alias", callback=_pairs, metavar="A=B", help="Define A as another name of B.")
@click.option("--phony-externals", is_flag=True, help="Put undefined names at address 0.")
@_option("--preload", metavar="LIB", help="Load a shared library first.")
@_option("-l", "libraries", metavar="NAME", help="Link with libNAME.so or libNAME.a.")
@_option("-L", "folders", metavar="DIR", help="Look for libraries there first.")
@click.option(
    "--base", callback=_address, metavar="ADDR", help="Link to this address (--noexec)."
)
@_option(
    "--map-section", callback=_pairs, metavar="FILE,SECTION=ADDR",
    help="Put one section at an address (--noexec).",
)  # fmt: skip
@_option(
    "--harness", metavar="FILE",
    help="An object that tests the others: it replaces their functions and sees their statics.",
)  # fmt: skip
@click.option("--show-addrs", is_flag=True, help="List sections and symbols with addresses.")
@click.option("--show-graph", is_flag=True, help="Show the linked graph.")
@click.option("--show-times", is_flag=True, help="Show how long each step took.")
@_option("--check", metavar="FILE", help="Evaluate the `# jitlink-check:` lines of a file.")
@click.option("--check-name", default="jitlink-check", metavar="PREFIX", help="Another prefix.")
@click.option("--perf-dump", is_flag=True, help="Write a jitdump, for `perf inject --jit`.")
@json_option
def link(**given: Any) -> int:  # noqa: ANN401 - one argument an option
    """Link objects and archives in memory and call their main; its status is ours.

    Archive members are linked as they are needed. Nothing is watched or reloaded: that is
    `reloader run FILE.o ...`.

    \b
    Example: reloader link main.o libgame.a -lm --args one --args two
             reloader link --noexec --check expected.txt hud.o
    """  # noqa: D301 - \b is click's mark
    from reloader.linker.request import Times, link_unexecuted  # noqa: PLC0415 - loads numpy

    request, times = _request(given), Times()
    if given["noexec"]:
        with progress("linking"):
            result = link_unexecuted(request, times)
        _look_at(result, given)
        return 0
    for option, value in (("--base", request.base), ("--map-section", request.sections)):
        if value not in (None, {}):
            raise OnlyUnexecutedError(option)
    return _execute(request, given, times)


def _execute(request: Request, given: dict[str, Any], times: Any) -> int:  # noqa: ANN401 - Times
    from reloader.linker.host import (  # noqa: PLC0415 - as above
        dump_for_perf,
        entry_of,
        link_executed,
        run,
        started,
    )

    argv = [request.files[0], *given["args"]]
    with started(argv, os.environ) as host:
        result = link_executed(request, host, times)
        entry_of(result, request.entry)
        if given["perf_dump"]:
            click.echo(f"reloader: jitdump in {dump_for_perf(result, host)}", err=True)
        _look_at(result, given, timed=False)
        status = run(request, result, host)
    if given["show_times"] and not given["as_json"]:
        _show_times(result)
    return status


def _request(given: dict[str, Any]) -> Request:
    """Return the request that the options mean."""
    from reloader.linker.request import Request  # noqa: PLC0415 - as above

    sections: dict[tuple[str, str], int] = {}
    for place, addr in given["map_section"]:
        file, comma, section = place.partition(",")
        if not comma:
            message = f"--map-section {place}: give FILE,SECTION=ADDR"
            raise click.UsageError(message)
        sections[file, section] = address(addr)
    return Request(
        files=given["files"],
        libraries=given["libraries"],
        folders=given["folders"],
        preload=given["preload"],
        harness=given["harness"],
        entry=given["entry"],
        absolutes={name.encode(): address(addr) for name, addr in given["define_abs"]},
        aliases={name.encode(): target.encode() for name, target in given["alias"]},
        sections=sections,
        phony=given["phony_externals"],
        base=given["base"],
    )


def _look_at(result: Result, given: dict[str, Any], *, timed: bool = True) -> None:
    """Print and check what was asked for; all of it before anything runs."""
    from reloader.linker import listing  # noqa: PLC0415 - loads numpy
    from reloader.linker.checking import run_checks  # noqa: PLC0415 - as above

    if given["show_graph"]:
        click.echo(listing.graph(result), nl=False)
    if given["show_addrs"] and not given["as_json"]:
        click.echo(listing.addresses(result))
    counts: dict[str, int] = {}
    with result.times.step("check"):
        for path in given["check"]:
            counts[path] = run_checks(Path(path), given["check_name"], result.facts)
    if given["as_json"]:
        click.echo(json.dumps(listing.as_json(result, counts), indent=2))
        return
    for path, count in counts.items():
        click.echo(f"{path}: {count} checks hold")
    if given["show_times"] and timed:
        _show_times(result)


def _show_times(result: Result) -> None:
    for name, milliseconds in result.times.steps.items():
        click.echo(f"{name:6} {milliseconds:9.2f} ms", err=True)
