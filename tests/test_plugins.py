"""Plugins: loaded by path and by entry point, called at the borders, and stopped when wrong."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from reloader.arch.base import Architecture
from reloader.config import load_config
from reloader.errors.plugins import (
    NoHooksError,
    PluginError,
    PluginFileError,
    PluginGraphError,
    PluginLoadError,
)
from reloader.ids import NO_ADDR, SlotId
from reloader.link.graph import LinkGraph
from reloader.link.hooks import Border
from reloader.link.pipeline import link_graph, mark_first_load, read_graph
from reloader.session.plugins import HOOKS, Event, Plugins, load_plugins
from reloader.session.session import Session
from tests.support.link import ARCH, FakeArena, Names, compile_object, link_setting
from tests.support.road import MAIN, Program, reload

ROOT = Path(__file__).resolve().parents[1]
BORDERS = [border.value for border in Border]

COUNTER = """
__attribute__((noinline)) static int step(int n) { return n + 1; }
static int count = 40;
int answer(int n) { count += step(n); return count * 10 + step(1); }
"""


class Recorder:
    """Says when it was called."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.events: list[Event] = []

    def __getattr__(self, name: str) -> object:
        if name not in HOOKS:
            raise AttributeError(name)
        return partial(self.note, name)

    def note(self, name: str, *arguments: object) -> None:
        self.calls.append(name)
        self.events += [item for item in arguments if isinstance(item, Event)]


class Raiser:
    """Raises in one hook."""

    def __init__(self, hook: str) -> None:
        self.hook = hook

    def __getattr__(self, name: str) -> object:
        if name != self.hook:
            raise AttributeError(name)
        return self.fail

    def fail(self, *_arguments: object) -> None:
        message = f"no {self.hook} today"
        raise LookupError(message)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path, ("-O2", "-g", "-ffunction-sections"))
    made.compile(main=MAIN, counter=COUNTER)
    made.link()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def session(program: Program) -> Iterator[Session]:
    assert program.process is not None
    watch = [str(program.folder / "*.o")]
    made = Session.attach(program.process.pid, program.folder, watch, Plugins())
    yield made
    made.close()


def plugins_of(session: Session) -> Plugins:
    assert session.plugins is not None
    return session.plugins


def test_every_hook_is_called_in_its_place(program: Program, session: Session) -> None:
    recorder = Recorder()
    plugins_of(session).add("recorder", recorder)
    edited = COUNTER.replace("* 10", "* 100")
    outcome = reload(session, *program.compile(counter=edited))
    assert (outcome.state, outcome.notes) == ("live", [])
    assert recorder.calls == [*BORDERS, "loaded", "emitted"]
    live = recorder.events[-1]
    assert live.generation == outcome.generation
    assert live.objects == (str(program.folder / "counter.o"),)
    assert live.graph is not None
    assert {b"answer", b"step"} <= set(live.graph.symbols.name)
    assert live.memory
    recorder.calls.clear()
    bad = "int missing(int);" + COUNTER.replace("* 10", "* missing(3)")
    refused = reload(session, *program.compile(counter=bad))
    assert recorder.calls == ["pre_prune", "post_prune", "failed"]
    assert recorder.events[-1].error == refused.error
    recorder.calls.clear()
    edited = COUNTER.replace("* 10", "* 1000").replace("n + 1", "n + 2")
    assert reload(session, *program.compile(counter=edited)).state == "live"
    session.retiring.attempt()
    removed = [event for event in recorder.events if event.memory and event.graph is None]
    assert recorder.calls[-len(removed) :] == ["removed"] * len(removed)
    assert {event.generation for event in removed} == {outcome.generation}
    gone = {part.addr for event in removed for part in event.memory}
    assert {part.addr for part in live.memory if part.region == 0} <= gone


@pytest.mark.parametrize("hook", [*BORDERS, "loaded"])
def test_a_plugin_that_raises_stops_the_reload(
    program: Program, session: Session, hook: str
) -> None:
    before = session.process.arena.slots.copy()
    known = set(session.program.ledger.rows)
    assert program.ask(2) == 432
    plugins_of(session).add("grumpy.py", Raiser(hook))
    outcome = reload(session, *program.compile(counter=COUNTER.replace("* 10", "* 100")))
    assert (outcome.state, outcome.code) == ("failed", "plugin")
    assert outcome.error == (
        f"plugin grumpy.py failed in {hook}: LookupError: no {hook} today. Nothing was changed."
        " The plugin has to be corrected, or taken out of reloader.toml."
    )
    assert np.array_equal(session.process.arena.slots, before)
    assert set(session.program.ledger.rows) == known
    assert program.ask(2) == 462
    plugins_of(session).hooks.clear()
    assert session.reload_files([str(program.folder / "counter.o")]).state == "live"
    assert program.ask(0) == 4702


@pytest.mark.parametrize("hook", ["emitted", "failed"])
def test_what_is_done_already_is_not_stopped_by_a_plugin(
    program: Program, session: Session, hook: str
) -> None:
    plugins_of(session).add("late", Raiser(hook))
    text = COUNTER.replace("* 10", "* 100") if hook == "emitted" else "int missing(void);"
    if hook == "failed":
        text += COUNTER.replace("* 10", "* missing()")
    outcome = reload(session, *program.compile(counter=text))
    assert outcome.state == ("live" if hook == "emitted" else "refused")
    assert f"plugin late failed in {hook}: LookupError: no {hook} today" in outcome.notes


def test_a_plugin_that_fails_at_a_removal_is_reported(
    program: Program, session: Session
) -> None:
    plugins_of(session).add("late", Raiser("removed"))
    for factor in (100, 1000):
        edited = COUNTER.replace("* 10", f"* {factor}")
        assert reload(session, *program.compile(counter=edited)).state == "live"
    report = session.retiring.attempt()
    assert report.freed
    text = "plugin late failed in removed: LookupError: no removed today"
    assert set(session.retiring.problems) == {text}


def test_a_plugin_may_change_what_is_linked(program: Program, session: Session) -> None:
    class Wrapper:
        """Sends every call of `step` to `other`."""

        def pre_prune(self, graph: LinkGraph, _arch: Architecture) -> None:
            step, other = (graph.symbols.name.index(name) for name in (b"step", b"other"))
            graph.edges.symbol[graph.edges.symbol == step] = other

    plugins_of(session).add("wrapper", Wrapper())
    edited = COUNTER.replace("* 10", "* 100").replace(
        "static int count", "__attribute__((noinline)) int other(int n) { return n + 500; }\n"
        "static int count"
    )  # fmt: skip
    assert reload(session, *program.compile(counter=edited)).error == ""
    assert program.ask(0) == (40 + 500) * 100 + 501


def test_a_plugin_that_breaks_the_graph_is_named(program: Program, session: Session) -> None:
    class Breaker:
        def post_prune(self, graph: LinkGraph, _arch: Architecture) -> None:
            graph.edges.symbol = graph.edges.symbol[:-1]

    plugins_of(session).add("breaker", Breaker())
    outcome = reload(session, *program.compile(counter=COUNTER.replace("* 10", "* 100")))
    assert outcome.error == (
        "plugin breaker left the link graph wrong in post_prune: columns of Edges differ in"
        " length (rows 3). Nothing was changed. docs/graph.md says what has to hold."
    )
    assert program.ask(2) == 432


def test_rows_out_of_range_are_named_too(tmp_path: Path) -> None:
    def wrong_symbol(graph: LinkGraph, _arch: Architecture) -> None:
        graph.edges.kind[0] = 9999

    plugins = Plugins()
    plugins.add("far", type("Far", (), {"pre_fixup": staticmethod(wrong_symbol)}))
    file = compile_object(tmp_path, "counter.c", COUNTER, "-O2")
    graph = read_graph([file], [None], ARCH)
    mark_first_load(graph)
    setting = link_setting(FakeArena(), [None], Names())
    setting.hooks = plugins
    with pytest.raises(PluginGraphError, match=r"plugin far left the link graph wrong in pre_"):
        link_graph(graph, setting)


def test_a_plugin_that_only_looks_changes_no_byte(tmp_path: Path) -> None:
    text = COUNTER + "extern int outside; int *where(void) { return &outside; }"
    file = compile_object(tmp_path, "counter.c", text, "-O2", "-fPIC")
    contents: list[bytes] = []
    plugins = Plugins()
    plugins.add("recorder", Recorder())
    for hooks in (None, plugins):
        graph = read_graph([file], [None], ARCH)
        mark_first_load(graph)
        names = Names({b"outside": 0x1000_0000})
        setting = link_setting(FakeArena(), [None], names)
        setting.hooks = hooks
        contents.append(link_graph(graph, setting).graph.content.tobytes())
    assert contents[0] == contents[1]


def test_a_project_without_plugins_has_none(tmp_path: Path) -> None:
    assert load_plugins(tmp_path, [], installed=[]) is None


def test_plugins_come_from_paths_and_from_entry_points(tmp_path: Path) -> None:
    (tmp_path / "reloader.toml").write_text('plugins = ["tools/one.py", "tools/two.py"]\n')
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "one.py").write_text("def emitted(event): pass\n")
    (tmp_path / "tools" / "two.py").write_text(
        "class Two:\n    def post_fixup(self, graph, arch): pass\nplugin = Two\n"
    )
    paths = load_config(tmp_path).plugins
    plugins = load_plugins(tmp_path, paths, installed=[])
    assert plugins is not None
    assert plugins.names == ["tools/one.py", "tools/two.py"]
    assert sorted(plugins.hooks) == ["emitted", "post_fixup"]
    installed = [EntryPoint("demo", "collections:OrderedDict", "reloader.plugins")]
    with pytest.raises(NoHooksError) as caught:
        load_plugins(tmp_path, [], installed)
    assert str(caught.value) == (
        f"plugin demo: has none of the hooks {', '.join(HOOKS)}. Nothing was changed. Correct"
        " it, take it out of `plugins` in reloader.toml, or uninstall the package that brings"
        " it."
    )


def test_an_installed_package_brings_a_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flags_of_functions.py").write_text(
        "class Seen:\n    def loaded(self, event): pass\n"
    )
    info = tmp_path / "flags_of_functions-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: flags-of-functions\nVersion: 1\n"
    )
    (info / "entry_points.txt").write_text(
        "[reloader.plugins]\nflags = flags_of_functions:Seen\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    plugins = load_plugins(tmp_path, [])
    assert plugins is not None
    assert "flags" in plugins.names
    assert [name for name, _ in plugins.hooks["loaded"]] == ["flags"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import nothing_of_that_name", "cannot be imported: ModuleNotFoundError: No module"),
        ("def emited(event): pass", "has none of the hooks pre_prune, "),
        ("def emitted(:", "cannot be imported: SyntaxError: "),
        (
            "def emitted(_): pass\nclass plugin:\n    def __init__(self): raise KeyError(3)",
            "cannot be made: KeyError: 3",
        ),
    ],
)
def test_a_file_that_is_no_plugin_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "wrong.py").write_text(text)
    with pytest.raises(PluginLoadError) as caught:
        load_plugins(tmp_path, ["wrong.py"], installed=[])
    assert "wrong.py: " + problem in str(caught.value)
    assert "Nothing was changed. Correct it" in str(caught.value)


def test_a_file_that_is_missing_or_anybodys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginFileError) as caught:
        load_plugins(tmp_path, ["no.py"], installed=[])
    assert f"plugin {tmp_path / 'no.py'}: there is no such file. Nothing" in str(caught.value)
    (tmp_path / "anybody.py").write_text("def emitted(event): pass\n")
    (tmp_path / "anybody.py").chmod(0o666)
    with pytest.raises(PluginLoadError, match="UntrustedPathError"):
        load_plugins(tmp_path, ["anybody.py"], installed=[])


def test_an_error_of_a_plugin_keeps_its_fields() -> None:
    plugins = Plugins()
    plugins.add("grumpy", Raiser("loaded"))
    with pytest.raises(PluginError) as caught:
        plugins.loaded(Event(("a.o",)))
    assert (caught.value.plugin, caught.value.hook) == ("grumpy", "loaded")
    assert isinstance(caught.value.__cause__, LookupError)


def test_the_example_records_the_call_sites_of_a_function(
    program: Program, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = program.folder / "sites.json"
    monkeypatch.setenv("CALL_SITES_OF", "step")
    monkeypatch.setenv("CALL_SITES_FILE", str(record))
    example = load_plugins(ROOT, ["demo/plugins/call_sites.py"], installed=[])
    assert example is not None
    for hook, calls in example.hooks.items():
        plugins_of(session).hooks.setdefault(hook, []).extend(calls)
    edited = COUNTER.replace("* 10 + step(1)", "* 100 + step(2) + step(n)")
    outcome = reload(session, *program.compile(counter=edited))
    assert (outcome.state, outcome.notes) == ("live", [])
    sites = json.loads(record.read_text())[str(outcome.generation)]
    assert [site["caller"] for site in sites] == ["answer"] * len(sites)
    assert len(sites) >= 2
    code = session.process
    for site in sites:
        opcode = int(code.read(site["address"] - 1, 1)[0])
        distance = int(code.read(site["address"], 4).view("<i4")[0])
        assert opcode in {0xE8, 0xE9}
        target = site["address"] + 4 + distance
        row = session.program.table.functions()
        stubs = {code.arena.stub_addr(SlotId(slot)): key.name for slot, key, _ in row}
        assert stubs.get(target) == b"step"
    assert int(NO_ADDR) not in {site["address"] for site in sites}


def test_the_daemon_runs_the_plugins_of_its_project_and_moves_objects(tmp_path: Path) -> None:
    program = Program(tmp_path)
    program.compile(main=MAIN, counter=COUNTER)
    program.link()
    program.start()
    (tmp_path / "note.py").write_text(
        "from pathlib import Path\n"
        "def emitted(event):\n"
        "    with Path(__file__).with_name('log').open('a') as file:\n"
        "        print(event.generation, *event.objects, file=file)\n"
    )
    config = tmp_path / "reloader.toml"
    config.write_text('plugins = ["nothing.py"]\n')
    assert program.process is not None
    attach = ("attach", str(program.process.pid), "--watch", "*.o")
    try:
        refused = verb(tmp_path, *attach)
        assert refused.returncode == 1
        assert "nothing.py: there is no such file. Nothing was changed." in refused.stderr
        config.write_text('plugins = ["note.py"]\n')
        assert verb(tmp_path, *attach).returncode == 0
        moved = verb(tmp_path, "remap", "counter.o")
        assert moved.stdout.startswith("counter.o moved: ")
        assert (tmp_path / "log").read_text() == f"1 {tmp_path / 'counter.o'}\n"
        assert program.ask(2) == 432
        assert json.loads(verb(tmp_path, "history", "--json").stdout)[0]["kind"] == "remap"
    finally:
        verb(tmp_path, "stop")
        program.stop()


def verb(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "reloader", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
