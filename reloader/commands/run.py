"""`reloader run`: start a program under the daemon and exit as it does."""

from __future__ import annotations

import json
import os
import selectors
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reloader.client import Client
from reloader.commands import show
from reloader.commands.common import absolute, progress
from reloader.commands.control import (
    build_option,
    mode_options,
    modes,
    source_option,
    watch_option,
)
from reloader.commands.host_command import HOST, host_command
from reloader.commands.run_program import minding
from reloader.commands.show import local
from reloader.config import load_config
from reloader.wire.protocol import Event, check_peer
from reloader.wire.spawn import agent_environment, find_program, socket_pair, start_program

if TYPE_CHECKING:
    from collections.abc import Callable

_LAST_WORDS_S = 2.0  # how long the daemon may take to tell why there was no program
# statuses of programs that a signal ended which their own code brought about
_CRASHED = frozenset(
    128 + number
    for number in (
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGILL,
        signal.SIGFPE,
        signal.SIGTRAP,
        signal.SIGABRT,
        signal.SIGSYS,
    )
)
_PASS_ON = {"ignore_unknown_options": False, "allow_interspersed_args": False}


@click.command(context_settings=_PASS_ON)
@watch_option
@build_option
@source_option
@mode_options
@click.option(
    "--program",
    metavar="NAME",
    help="The process that is meant, where PROGRAM is a wrapper (`dune exec`, `make run`).",
)
@click.option("--quiet", is_flag=True, help="Show no events.")
@click.option("--json", "as_json", is_flag=True, help="Show events as JSON lines.")
@click.option("--target", hidden=True, help="Accepted, as every verb does; means nothing here.")
@click.argument("argv", nargs=-1, required=True, metavar="PROGRAM [ARG]...")
def run(  # noqa: PLR0913 - one argument an option
    *,
    watch: tuple[str, ...],
    build: str | None,
    source: tuple[str, ...],
    consistent: bool,
    no_replay: bool,
    replay_crashed: bool,
    program: str | None,
    quiet: bool,
    as_json: bool,
    target: str | None,
    argv: tuple[str, ...],
) -> int:
    """Start a program; it has the terminal, the signals and Ctrl-C, and gives its status.

    Objects and archives in place of PROGRAM are linked in memory, and their main is called:
    `reloader run FILE.o LIB.a -lm ... [-- ARG...]`. They are watched from the start.

    What is reloaded is told on standard error.

    \b
    Example: reloader run --watch 'build/*.o' -- ./game --level 3
             reloader run --build make --source 'src/*.c' -- ./game
             reloader run main.o libgame.a -lm -- --level 3
    """  # noqa: D301 - \b is click's mark
    del target
    objects = host_command(argv)
    path = str(HOST) if objects else find_program(argv[0], os.environ)
    argv = objects.argv if objects else argv
    theirs, daemons = socket_pair()
    with progress(f"preparing {argv[0]}"):
        client = Client.open()
        program = program or load_config(client.project.folder).program or None
        env = agent_environment(os.environ, theirs, check_peer(client.channel.sock), program)
        reply = client.spawn(
            daemons,
            argv=list(argv),
            path=absolute(path),
            cwd=str(Path.cwd()),
            env=env,
            build_env=dict(os.environ),
            program=program,
            link=list(objects.words) if objects else [],
            watch=[*(objects.watch if objects else ()), *(absolute(glob) for glob in watch)],
            build=build,
            source=[absolute(glob) for glob in source],
            **modes(consistent=consistent, no_replay=no_replay, replay_crashed=replay_crashed),
        )
    os.close(daemons)
    shown = _Shown(reply["session"], quiet=quiet, as_json=as_json)
    with client, minding(client, shown) as minder:
        minder.pid = start_program(path, argv, env, theirs)
        os.close(theirs)  # the daemon must see the stream's end when the program's end closes
        status = minder.wait()
        if status in _CRASHED:
            shown.until_ended(client)
        if objects:
            shown.until_loaded(client)
        return status


class _Shown:
    """Shows the events of one session on standard error."""

    def __init__(self, session: int, *, quiet: bool, as_json: bool) -> None:
        self._session = session
        self._quiet = quiet
        self._as_json = as_json
        self._loaded = self._ended = False

    def __call__(self, event: Event | None) -> None:
        if event is None:
            event = Event("warning", {"text": "the daemon ended; the program runs on"})
        if event.data.get("session", self._session) != self._session:
            return
        self._loaded |= event.kind == "reload"
        self._ended |= event.kind == "ended"
        if self._quiet:
            return
        line = self._json(event) if self._as_json else local(show.event(event) or "")
        if line:
            click.echo(line, err=True)

    def until_loaded(self, client: Client) -> None:
        """Show what became of the first load, though the program has ended over it."""
        self._until(client, lambda: self._loaded or self._ended)

    def until_ended(self, client: Client) -> None:
        """Show what the daemon makes of the program's end."""
        self._until(client, lambda: self._ended)

    def _until(self, client: Client, done: Callable[[], bool]) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(client.channel, selectors.EVENT_READ)
            while not done() and selector.select(_LAST_WORDS_S):
                event = client.next_event()
                self(event)
                self._ended |= event is None

    @staticmethod
    def _json(event: Event) -> str:

        return json.dumps({"kind": event.kind, **event.data})
