"""What all verbs share: `--json`, `--target`, the connection, and progress on a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from reloader.client import Client
from reloader.commands.show import local

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from rich.status import Status

    from reloader.wire.protocol import Event

F = TypeVar("F", bound="Callable[..., Any]")
_SILENCE_S: Final = 0.5  # shorter waits show nothing

target_option = click.option(
    "--target",
    metavar="SESSION|PID|NAME",
    help="Which program, where several run.",
)


def json_option(command: F) -> F:
    """Add `--json`; an error is then JSON too."""

    def note(ctx: click.Context, _: click.Parameter, value: bool) -> bool:  # noqa: FBT001 - click's signature
        if value and ctx.obj is not None:
            ctx.obj["json"] = True
        return value

    return click.option("--json", "as_json", is_flag=True, callback=note, help="Print JSON.")(
        command
    )


def common_options(command: F) -> F:
    """Add the options that every verb has."""
    return target_option(json_option(command))


@contextlib.contextmanager
def connected(
    doing: str, *, target: str | None = None, start: bool = True
) -> Generator[Client]:
    """Connect to the daemon; on a terminal, show what takes long.

    Args:
        doing: What is shown until the daemon says more: `loading hud.o`.
        target: What `--target` said.
        start: Start a daemon if none runs.
    """
    with progress(doing) as tell:

        def on_event(event: Event) -> None:
            if event.kind == "progress":
                tell(str(event.data.get("text", doing)))

        with Client.open(start=start, target=target, on_event=on_event) as client:
            yield client


@contextlib.contextmanager
def progress(doing: str) -> Generator[Callable[[str], None]]:
    """Show a spinner once half a second has gone, if a terminal is there to show it.

    Yields:
        A function that changes the text.
    """
    spinner = _Spinner(doing)
    timer = threading.Timer(_SILENCE_S, spinner.begin)
    timer.daemon = True
    if sys.stderr and sys.stderr.isatty():  # None where it was closed (`2>&-`)
        timer.start()
    try:
        yield spinner.tell
    finally:
        timer.cancel()
        spinner.end()


def answer(result: object, text: Callable[[], str], *, as_json: bool) -> None:
    """Print a result, as JSON or as text."""
    click.echo(json.dumps(result, indent=2) if as_json else local(text()))


def absolute(path: str) -> str:
    """Return a path or glob that means the same in the daemon's working directory."""
    return os.path.abspath(path)  # noqa: PTH100 - pathlib follows links; globs must stay


class _Spinner:
    """rich's, imported only when it is needed."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lock = threading.Lock()
        self._status: Status | None = None
        self._ended = False

    def begin(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - costs more than most commands
        from rich.markup import escape  # noqa: PLC0415 - as above

        with self._lock:
            if not self._ended:
                self._status = Console(stderr=True).status(escape(self._text))
                self._status.start()

    def tell(self, text: str) -> None:
        with self._lock:
            self._text = text
            if self._status:
                from rich.markup import escape  # noqa: PLC0415 - as above

                self._status.update(escape(text))

    def end(self) -> None:
        with self._lock:
            self._ended = True
            if self._status:
                self._status.stop()
