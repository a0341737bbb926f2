"""The command line: verbs found lazily, errors as `reloader: …`, exit codes.

0: done. 1: refused or failed, the reason on standard error. 2: wrong usage. `run` exits as its
program did.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from reloader.errors.base import ReloaderError

if TYPE_CHECKING:
    from collections.abc import Sequence

# verb -> the module that has it; only the module of the verb that was typed is imported
VERBS: Final = {
    "run": "run",
    "attach": "control",
    "status": "look",
    "objects": "look",
    "history": "look",
    "memory": "look",
    "generations": "look",
    "owner": "look",
    "why": "look",
    "check": "change",
    "load": "change",
    "unload": "change",
    "remap": "change",
    "rollback": "change",
    "wait": "change",
    "link": "link",
    "doctor": "control",
    "detach": "control",
    "stop": "control",
}


class Verbs(click.Group):
    """The verbs in the order of use; a misspelt one is answered with the nearest."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Return a verb's command, its module imported now."""
        if cmd_name not in VERBS:
            return None
        module = import_module(f"reloader.commands.{VERBS[cmd_name]}")
        return getattr(module, cmd_name)

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb; Ctrl-C is an exit status, without click's empty line."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(128 + signal.SIGINT) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or name the nearest."""
        verb = args[0]
        if verb not in VERBS and not verb.startswith("-"):
            import difflib  # noqa: PLC0415 - 13 ms, for misspelt verbs only

            nearest = difflib.get_close_matches(verb, VERBS, n=1)
            hint = f" Did you mean `{nearest[0]}`?" if nearest else ""
            ctx.fail(f"no such verb `{verb}`.{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="reloader", message="%(version)s")
def cli() -> None:
    """Make a saved object file the running code of a live native process.

    \b
    reloader run --watch 'build/*.o' -- ./game     start a program
    reloader attach 4711 --watch 'build/*.o'       beside one that runs
    reloader history                               what was reloaded
    """  # noqa: D301 - \b is click's mark


def main() -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may be any bytes
            stream.reconfigure(errors="surrogateescape")
    sys.exit(run_cli(sys.argv[1:]))


def run_cli(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    asked: dict[str, Any] = {}  # `--json` notes itself here
    try:
        status = cli.main(list(arguments), "reloader", standalone_mode=False, obj=asked)
        if sys.stdout:  # None where it was closed (`>&-`)
            sys.stdout.flush()
    except click.UsageError as error:
        return _wrong_usage(error)
    except click.ClickException as error:
        return _failed("usage", error.format_message(), as_json=False)
    except ReloaderError as error:
        return _failed(error.code, str(error), as_json="json" in asked)
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except OSError as error:
        return _system_failed(error, as_json="json" in asked)
    return status if isinstance(status, int) else 0


def _wrong_usage(error: click.UsageError) -> int:
    if error.ctx:
        click.echo(error.ctx.get_usage(), err=True)
    click.echo(f"reloader: {error.format_message()}", err=True)
    return 2


def _system_failed(error: OSError, *, as_json: bool) -> int:
    """Tell what the system refused: a folder that cannot be written, a closed pipe."""
    if isinstance(error, BrokenPipeError):
        # the reader has seen enough; Python would complain when it flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    what = f"{error.filename}: " if error.filename else ""
    return _failed("system", f"{what}{error.strerror or error}", as_json=as_json)


def _failed(code: str, text: str, *, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps({"error": {"code": code, "text": text}}, indent=2))
    from reloader.commands.names import readable  # noqa: PLC0415 - for failures only

    click.echo(f"reloader: {readable(text)}", err=True)
    return 1
