"""Configuration: what is read, and the text of every refusal."""

from pathlib import Path

import pytest

from reloader.config import Config, load_config
from reloader.errors.daemon import ConfigError


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_config(tmp_path) == Config()


def test_own_file_is_read_and_wins_over_pyproject(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.reloader]\nbuild = "ninja"\n')
    assert load_config(tmp_path).build == "ninja"
    own = 'watch = ["*.o"]\nkeep = 3\npolling_interval_s = 2\n[arena]\ncode_mib = 64\n'
    (tmp_path / "reloader.toml").write_text(own)
    config = load_config(tmp_path)
    assert (config.watch, config.keep, config.build) == (("*.o",), 3, "")
    assert config.polling_interval_s == 2
    assert (config.arena.code_mib, config.arena.data_mib) == (64, 256)


def test_pyproject_of_another_tool_is_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert load_config(tmp_path) == Config()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('wach = ["*.o"]', "unknown key `wach`. Nothing was changed. Did you mean watch?"),
        ("zzz = 1", "unknown key `zzz`. Nothing was changed."),
        ("[arena]\ncode = 1", "unknown key `arena.code`. Nothing was changed."),
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
        ("arena = 1", "`arena` is 1, it must be a table."),
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
