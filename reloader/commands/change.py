"""Verbs about what is loaded: check, load, unload, remap, rollback, wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from reloader.commands import show
from reloader.commands.common import absolute, answer, common_options, connected

if TYPE_CHECKING:
    from reloader.wire.answers import ReloadAnswer

_DONE: Final = frozenset({"live", "unchanged"})
_FILES = click.argument("files", nargs=-1, required=True, metavar="FILE...")


@click.command()
@_FILES
@common_options
def check(*, files: tuple[str, ...], target: str | None, as_json: bool) -> int:
    """Say whether objects would load, with every reason why not; changes nothing.

    \b
    Example: reloader check build/hud.o
    """  # noqa: D301 - \b is click's mark
    with connected(f"checking {show.shorten(files)}", target=target) as client:
        result = client.check([absolute(file) for file in files])
    answer(result, lambda: show.check(result), as_json=as_json)
    return 0 if all(row["ok"] for row in result) else 1


@click.command()
@_FILES
@click.option(
    "--reinit",
    multiple=True,
    metavar="NAME",
    help="Begin this variable anew instead of keeping its value.",
)
@click.option(
    "--consistent",
    is_flag=True,
    help="Switch all functions at one instant, when no thread is inside any of them.",
)
@common_options
def load(
    *,
    files: tuple[str, ...],
    reinit: tuple[str, ...],
    consistent: bool,
    target: str | None,
    as_json: bool,
) -> int:
    """Load objects or archives, all of them or none.

    \b
    Example: reloader load build/hud.o build/score.o
             reloader load --reinit scores build/score.o
    """  # noqa: D301 - \b is click's mark
    with connected(f"loading {show.shorten(files)}", target=target) as client:
        result = client.load([absolute(file) for file in files], reinit, consistent=consistent)
    return _report(result, as_json=as_json)


@click.command()
@click.argument("file")
@common_options
def unload(*, file: str, target: str | None, as_json: bool) -> int:
    """Take an object out that was loaded and that nothing refers to.

    \b
    Example: reloader unload build/cheats.o
    """  # noqa: D301 - \b is click's mark
    with connected(f"unloading {file}", target=target) as client:
        result = client.unload(absolute(file))
    return _report(result, as_json=as_json)


@click.command()
@click.argument("file")
@common_options
def remap(*, file: str, target: str | None, as_json: bool) -> int:
    """Give the code and constants of a live object another place; variables stay.

    \b
    Example: reloader remap build/hud.o
    """  # noqa: D301 - \b is click's mark
    with connected(f"re-mapping {file}", target=target) as client:
        result = client.remap(absolute(file))
    return _report(result, as_json=as_json)


@click.command()
@click.argument("generation", type=click.IntRange(min=0), required=False)
@common_options
def rollback(*, generation: int | None, target: str | None, as_json: bool) -> int:
    """Make the code live again that was live after a generation (default: the one before).

    \b
    Example: reloader rollback        take the last reload back
             reloader rollback 0      back to the program as it was linked
    """  # noqa: D301 - \b is click's mark
    with connected("rolling back", target=target) as client:
        result = client.rollback(generation)
    return _report(result, as_json=as_json)


@click.command()
@click.option("--generation", type=click.IntRange(min=1), help="Wait for this attempt.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="S", help="Seconds to wait.")
@common_options
def wait(
    *, generation: int | None, timeout: float | None, target: str | None, as_json: bool
) -> int:
    """Wait until a reload is decided; without a number, until nothing is under way.

    \b
    Example: make && reloader wait --timeout 10
    """  # noqa: D301 - \b is click's mark
    with connected("waiting", target=target, start=False) as client:
        result = client.wait(generation, timeout)
    return _report(result, as_json=as_json)


def _report(result: ReloadAnswer, *, as_json: bool) -> int:
    """Print an outcome, a refused one on standard error, and return the exit status."""
    done = result["outcome"] in _DONE
    if done or as_json:
        answer(result, lambda: show.reload(result), as_json=as_json)
    if not done:
        click.echo(f"reloader: {show.local(show.reload(result))}", err=True)
    return 0 if done else 1
