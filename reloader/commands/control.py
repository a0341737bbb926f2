"""Verbs about programs and the daemon: attach, detach, doctor, stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import click

from reloader.commands import show
from reloader.commands.common import (
    absolute,
    answer,
    common_options,
    connected,
)

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

watch_option = click.option(
    "--watch",
    multiple=True,
    metavar="GLOB",
    help="Objects, archives or folders to watch; may be given often.",
)
build_option = click.option(
    "--build", metavar="CMD", help="Run this when a source is saved, then load what it made."
)
source_option = click.option(
    "--source", multiple=True, metavar="GLOB", help="Sources that start the build."
)


_MODES = (
    click.option(
        "--consistent",
        is_flag=True,
        help="Switch all functions of a reload at one instant, when no thread is inside any.",
    ),
    click.option(
        "--no-replay",
        is_flag=True,
        help="Do not give a restarted program the code that was live when it ended.",
    ),
    click.option(
        "--replay-crashed",
        is_flag=True,
        help="Give a restarted program the code that it crashed in, too.",
    ),
)


def mode_options(command: Callable[..., T]) -> Callable[..., T]:
    """Give a verb the options that say how reloads are made and what a restart gets."""
    for option in reversed(_MODES):
        command = option(command)
    return command


def modes(*, consistent: bool, no_replay: bool, replay_crashed: bool) -> dict[str, bool | None]:
    """Return them as the daemon takes them; what was not given is left to the configuration."""
    return {
        "consistent": consistent or None,
        "replay": False if no_replay else None,
        "replay_crashed": replay_crashed or None,
    }


@click.command()
@click.argument("pid", type=click.IntRange(min=1))
@watch_option
@build_option
@source_option
@mode_options
@common_options
def attach(  # noqa: PLR0913 - one argument an option
    *,
    pid: int,
    watch: tuple[str, ...],
    build: str | None,
    source: tuple[str, ...],
    consistent: bool,
    no_replay: bool,
    replay_crashed: bool,
    target: str | None,
    as_json: bool,
) -> None:
    """Go beside a program that already runs.

    \b
    Example: reloader attach 4711 --watch 'build/**/*.o'
    """  # noqa: D301 - \b is click's mark
    globs = [absolute(glob) for glob in watch]
    sources = [absolute(glob) for glob in source]
    with connected(f"attaching to {pid}", target=target) as client:
        wished = modes(
            consistent=consistent, no_replay=no_replay, replay_crashed=replay_crashed
        )
        result = client.attach(pid, watch=globs, build=build, source=sources, **wished)
    answer(result, lambda: f"beside {show.target(result)}", as_json=as_json)


@click.command()
@common_options
def detach(*, target: str | None, as_json: bool) -> None:
    """Let a program go on without us, with the code it has.

    \b
    Example: reloader detach --target 4711
    """  # noqa: D301 - \b is click's mark
    with connected("detaching", target=target, start=False) as client:
        result = client.detach()
    answer(result, lambda: f"left {show.target(result)}", as_json=as_json)


@click.command()
@click.argument("subject", required=False, metavar="[PID|PROGRAM]")
@common_options
def doctor(*, subject: str | None, target: str | None, as_json: bool) -> int:
    """Say what would stand in the way here, with the remedy.

    \b
    Example: reloader doctor ./game
    """  # noqa: D301 - \b is click's mark
    known = subject is None or (subject.isascii() and subject.isdigit())
    named = subject if known or subject is None else absolute(subject)
    with connected("examining", target=target) as client:
        result = client.doctor(named)
    answer(result, lambda: show.findings(result), as_json=as_json)
    return 1 if any(row["level"] == "error" for row in result) else 0


@click.command()
@common_options
def stop(*, target: str | None, as_json: bool) -> None:
    """End the daemon; programs go on with the code they have.

    \b
    Example: reloader stop
    """  # noqa: D301 - \b is click's mark
    with connected("stopping the daemon", target=target, start=False) as client:
        pid = client.stop()
    answer({"pid": pid}, lambda: f"daemon {pid} ended", as_json=as_json)
