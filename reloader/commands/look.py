"""Verbs that only look: status, objects, history, memory, generations, owner, why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from reloader.commands import show
from reloader.commands.common import absolute, answer, common_options, connected
from reloader.errors.daemon import NoDaemonError

if TYPE_CHECKING:
    from reloader.wire.answers import StatusAnswer


@click.command()
@common_options
def status(*, target: str | None, as_json: bool) -> None:
    """Say which programs are under the daemon.

    \b
    Example: reloader status --json
    """  # noqa: D301 - \b is click's mark
    result: StatusAnswer = {"daemon": None, "targets": []}
    try:
        with connected("asking the daemon", target=target, start=False) as client:
            result = client.status()
    except NoDaemonError:
        pass  # an answer, not a failure
    answer(result, lambda: show.status(result), as_json=as_json)


@click.command()
@common_options
def objects(*, target: str | None, as_json: bool) -> None:
    """List the watched objects and which generation of each is live.

    \b
    Example: reloader objects
    """  # noqa: D301 - \b is click's mark
    with connected("asking the daemon", target=target) as client:
        result = client.objects()
    answer(result, lambda: show.objects(result), as_json=as_json)


@click.command()
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="At most so many rows.",
)
@common_options
def history(*, limit: int, target: str | None, as_json: bool) -> None:
    """List what was reloaded, refused or unchanged, newest first.

    \b
    Example: reloader history -n 5
    """  # noqa: D301 - \b is click's mark
    with connected("asking the daemon", target=target) as client:
        result = client.history(limit)
    answer(result, lambda: show.history(result), as_json=as_json)


@click.command()
@common_options
def generations(*, target: str | None, as_json: bool) -> None:
    """List the generations that became live; `rollback` takes their numbers.

    \b
    Example: reloader generations
    """  # noqa: D301 - \b is click's mark
    with connected("asking the daemon", target=target) as client:
        result = client.generations()
    answer(result, lambda: show.history(result), as_json=as_json)


@click.command()
@common_options
def memory(*, target: str | None, as_json: bool) -> None:
    """Account for every byte held in the program, per object and generation.

    \b
    Example: reloader memory
    """  # noqa: D301 - \b is click's mark
    with connected("asking the daemon", target=target) as client:
        result = client.memory()
    answer(result, lambda: show.memory(result), as_json=as_json)


@click.command()
@click.argument("symbol_or_address")
@common_options
def owner(*, symbol_or_address: str, target: str | None, as_json: bool) -> None:
    """Say which object, section, source line and generation a symbol or address is of.

    \b
    Example: reloader owner draw
             reloader owner 0x55d0c8a1f1c4
    """  # noqa: D301 - \b is click's mark
    with connected("asking the daemon", target=target) as client:
        result = client.owner(symbol_or_address)
    answer(result, lambda: show.owners(result), as_json=as_json)


@click.command()
@click.argument("object_name", metavar="OBJECT")
@common_options
def why(*, object_name: str, target: str | None, as_json: bool) -> None:
    """Name what still holds old generations of an object in memory.

    \b
    Example: reloader why hud.o
    """  # noqa: D301 - \b is click's mark
    name = absolute(object_name) if Path(object_name).exists() else object_name
    with connected(f"looking for what holds {object_name}", target=target) as client:
        result = client.why(name)
    answer(result, lambda: show.holders(result), as_json=as_json)
