"""Configuration: what is read, and the text of every refusal."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from reloader.client import Client
from reloader.config import Config, HooksConfig, RetireConfig, TypesConfig, load_config
from reloader.errors.daemon import ConfigError
from reloader.hosts.caml.settings import OcamlConfig
from reloader.wire.project import Project
from tests.support.road import MAIN, Program, attached

ROOT = Path(__file__).resolve().parent.parent


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_config(tmp_path) == Config()


def test_own_file_is_read_and_wins_over_pyproject(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.reloader]\nbuild = "ninja"\n')
    assert load_config(tmp_path).build == "ninja"
    own = 'watch = ["*.o"]\nkeep = 3\npolling_interval_s = 2\n[retire]\nmax_stop_ms = 2\n'
    (tmp_path / "reloader.toml").write_text(own)
    config = load_config(tmp_path)
    assert (config.watch, config.keep, config.build) == (("*.o",), 3, "")
    assert config.polling_interval_s == 2
    assert (config.retire.max_stop_ms, config.retire.min_interval_s) == (2, 1.0)


def test_pyproject_of_another_tool_is_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert load_config(tmp_path) == Config()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('wach = ["*.o"]', "unknown key `wach`. Nothing was changed. Did you mean watch?"),
        ("zzz = 1", "unknown key `zzz`. Nothing was changed."),
        ("[retire]\nstops = 1", "unknown key `retire.stops`. Nothing was changed."),
        ("polling_interval_s = 0", "`polling_interval_s` is 0, it must be a number above 0."),
        ("consistent_limit_s = nan", "`consistent_limit_s` is nan, it must be a number above"),
        ("[hooks]\ntimeout_s = inf", "`hooks.timeout_s` is inf, it must be a number above 0."),
        ("retain = -1", "`retain` is -1, it must be at least 0."),
        (
            'watch = "*.o"',
            "`watch` is '*.o', it must be a list of strings. Nothing was changed.",
        ),
        ("watch = [1]", "`watch` is a list, it must be a list of strings."),
        ("polling = 1", "`polling` is 1, it must be true or false."),
        ("keep = true", "`keep` is true, it must be a whole number."),
        ("keep = 0", "`keep` is 0, it must be at least 1."),
        ("build = []", "`build` is a list, it must be a string."),
        ('[retire]\nmax_stop_ms = "5"', "`retire.max_stop_ms` is '5', it must be a number."),
        ("retire = 1", "`retire` is 1, it must be a table."),
        ("watch = [", "no TOML: "),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "reloader.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path)
    assert str(caught.value).startswith(f"{file}: {problem}")


def test_a_key_in_pyproject_is_named_in_full(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.reloader]\nkep = 2\n")
    with pytest.raises(ConfigError, match=r"unknown key `tool.reloader.kep`.*keep\?"):
        load_config(tmp_path)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path)
    made.compile(main=MAIN, part="int answer(int n) { return n + 1; }")
    made.link("main.o", "part.o")
    made.start()
    yield made
    made.stop()


def test_archives_of_the_configuration_are_searched(program: Program) -> None:
    library = program.folder / "library"
    library.mkdir()
    (helper,) = program.compile(helper="int helper(int n) { return n * 7; }")
    command = ["ar", "rcs", "library/libhelp.a", helper.name]
    subprocess.run(command, cwd=program.folder, check=True)
    helper.unlink()
    text = 'watch = ["part.o"]\narchives = ["library/*.a"]\n'
    (program.folder / "reloader.toml").write_text(text)
    assert program.process is not None
    with Client.open(Project(program.folder)) as client:
        client.attach(program.process.pid)
        program.compile(part="int helper(int); int answer(int n) { return helper(n); }")
        assert client.wait(1, 20.0)["outcome"] == "live"
        assert program.ask(6) == 42
        client.stop()


def test_limits_of_retirement_hold(program: Program) -> None:
    with attached(program) as session:
        limits = RetireConfig(max_stop_ms=2.0, min_interval_s=9.0)
        session.configure(Config(retire=limits), program.folder)
        policy = session.retiring.retirer.policy
        assert (policy.max_stop_ms, policy.min_interval) == (2.0, 9.0)


def test_every_key_is_read_somewhere() -> None:
    places = (ROOT / "reloader").rglob("*.py")
    text = "\n".join(path.read_text() for path in places if path.name != "config.py")
    sections = (Config, RetireConfig, HooksConfig, TypesConfig, OcamlConfig)
    names = {field.name for kind in sections for field in fields(kind)}
    unread = {name for name in names if not re.search(rf"[.\"]{name}\b", text)}
    assert not unread
