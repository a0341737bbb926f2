"""Which language a program is of: the symbols of its executable tell."""

from collections.abc import Mapping
from contextlib import ExitStack

from reloader.elf.object import ObjectFile
from reloader.errors.base import ReloaderError
from reloader.errors.live import AgentBusyError
from reloader.hosts import rust
from reloader.hosts.caml.entering import enter_runtime
from reloader.hosts.caml.globals_map import SYMBOL
from reloader.hosts.caml.saved import versions
from reloader.hosts.caml.settings import OcamlConfig
from reloader.hosts.caml.unit_object import is_unit
from reloader.hosts.caml.world import open_world
from reloader.hosts.ocaml import Ocaml
from reloader.link.graph import LinkGraph
from reloader.live.host import Host, Plain
from reloader.live.program import Program


class Unready(Plain):
    """An OCaml program whose units cannot be replaced; its C objects can."""

    name = "OCaml"

    def __init__(self, reason: ReloaderError) -> None:
        """Keep the reason for whoever tries."""
        self.reason = reason

    def whole(self, file: ObjectFile) -> bool:
        """Say so of units: they are none of C's."""
        return is_unit(file)

    def isolate(self, graph: LinkGraph) -> None:
        """Refuse units.

        Raises:
            ReloaderError: There is one.
        """
        if any(is_unit(file) for file in graph.objects):
            raise self.reason

    def swapped(self, generation: int) -> bool:
        """Refuse to tell of units.

        Raises:
            ReloaderError: Why nobody knows.
        """
        del generation
        raise self.reason


def choose_host(
    program: Program,
    config: OcamlConfig,
    rows: Mapping[str, str],
    earlier: Mapping[str, str] | None = None,
) -> tuple[Host, list[str]]:
    """Return what decides for a program's language, and what the user should know.

    Args:
        program: Its objects are matched.
        config: What the project says of OCaml.
        rows: What an earlier daemon's host wrote down.
        earlier: What was written down of an earlier run of the program.

    Raises:
        AgentBusyError: The agent does not answer.
    """
    image = program.image
    if rust.SYMBOL in image.symtab.name:
        return rust.Rust(image), []
    if SYMBOL not in image.symtab.name and SYMBOL not in image.dynsym.name:
        return Plain(), []
    if not any(is_unit(live.file) for live in program.objects.values()):
        return Plain(), []
    try:
        with ExitStack() as undo:
            world = open_world(image, config)
            undo.callback(world.inspector.close)
            world.take_versions(versions({**(earlier or {}), **rows}))
            host = Ocaml(program, enter_runtime(program, config), world, rows)
            undo.pop_all()
    except AgentBusyError:  # at what an earlier daemon has asked: nobody knows yet how it ends
        raise
    except ReloaderError as error:
        return Unready(error), [f"OCaml units cannot be reloaded: {error}"]
    return host, host.notes
