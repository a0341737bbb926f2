"""The wheel works from another folder, agent included; `stubs`, `state` are common names."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy of what git knows: a build leaves files in its source folder."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    names = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).split("\n")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    (source / "README.md").touch()
    run(
        sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
        "--no-index", "-w", out, source, cwd=out,
    )  # fmt: skip
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_is_for_this_platform_and_holds_the_agent(wheel: Path) -> None:
    assert wheel.name.startswith("reloader-")
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("stubs/agent/agent.so", "stubs/agent/reloader-holder", "reloader/cli.py"):
        assert name in names
    assert not [name for name in names if name.startswith(("tests/", "demo/", "tools/"))]


def test_the_installed_command_works_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    run(
        sys.executable, "-m", "pip", "--python", home / "bin/python", "install", "-q",
        "--no-deps", "--no-index", wheel, cwd=tmp_path,
    )  # fmt: skip
    libraries = sysconfig.get_path("purelib")
    # installed first, then our libraries: the dependencies come from there, nothing of ours
    (home / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
     / "dependencies.pth").write_text(libraries, encoding="utf-8")  # fmt: skip
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("stubs", "state"):  # a user's own folders of these names do not get in the way
        (elsewhere / name).mkdir()
        (elsewhere / name / "__init__.py").write_text("raise ImportError\n", encoding="utf-8")
    assert "Usage" in run(home / "bin/reloader", "--help", cwd=elsewhere)
    code = (
        "import stubs, state, reloader, pathlib;"
        "folder = pathlib.Path(stubs.__file__).parent / 'agent';"
        "print(reloader.__file__, (folder / 'agent.so').is_file())"
    )
    told = run(home / "bin/python", "-P", "-c", code, cwd=elsewhere)
    assert told.split() == [told.split()[0], "True"]
    assert told.startswith(str(home))
