"""The real server under load: no request fails, no visitor is forgotten over reloads."""

import re
from pathlib import Path

from tests.support.http_load import Load
from tests.support.ocaml import Compiler
from tests.support.ocaml_project import Project, server_of

VERSIONS = ("two", "three")


def _edit(server: Project, name: str, old: str, new: str) -> None:
    """Save a source, as an editor would; dune builds it and the daemon reloads."""
    text = (server.folder / name).read_text()
    assert text.count(old) == 1
    (server.folder / name).write_text(text.replace(old, new))


def test_visitors_see_every_new_version_and_are_remembered(
    compiler: Compiler, tmp_path: Path
) -> None:
    with server_of(compiler, tmp_path) as server:
        port = re.fullmatch(r"listening (\d+)", server.program.greeting)
        assert port is not None
        with Load(int(port.group(1)), visitors=3) as load:
            load.until("home, version one", 20)
            before = "one"
            for version in VERSIONS:
                _edit(server, "handlers.ml", f'version = "{before}"', f'version = "{version}"')
                load.until(f"home, version {version}", 20)
                before = version
            _edit(server, "store.ml", 'name = "visitor "', 'name = "guest "')
            server.report("Store.add")
            server.report("kept: ")
            _edit(server, "render.ml", "<p>", "<p class=line>")
            server.report("Render.page")
            load.until("home, version three", load.result.titles["home, version three"] + 20)
            result = load.stop()
        assert result.failures == []
        assert {row["outcome"] for row in server.json("history")} == {"live"}
