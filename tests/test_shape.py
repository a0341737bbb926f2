"""The shape of the code: who may import whom, sizes, the layout on paper, words to avoid."""

import ast
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("reloader", "stubs", "state")
MODULES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
MOST_LINES = 400

# What a part may import of our own code, besides itself. The two modules of `live` are
# contracts: columns and a protocol, no code that touches a process.
BASE = ("reloader.ids", "reloader.errors")
CONTRACTS = ("reloader.live.objects", "reloader.live.target")
READERS = (*BASE, "reloader.elf", "reloader.arch")
BELOW = (
    *READERS,
    "reloader.link",
    "reloader.live",
    "reloader.hosts",
    "reloader.config",
    "stubs",
)
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "stubs": (),
    "state": (),
    "reloader.ids": (),
    "reloader.errors": (),
    "reloader.elf": READERS,
    "reloader.arch": READERS,
    "reloader.link": (*READERS, *CONTRACTS),
    "reloader.live": (*READERS, "reloader.link", "stubs"),
    "reloader.hosts": (*READERS, "reloader.link", "reloader.live", "stubs"),
    "reloader.watching": BASE,
    "reloader.wire": BASE,
    "reloader.linker": (*BELOW, "reloader.wire.spawn"),
    "reloader.reload": (*BELOW, "reloader.session"),
    "reloader.session": (
        *BELOW,
        "reloader.linker",
        "reloader.reload",
        "reloader.watching",
        "state",
    ),
    "reloader.server": (
        *BELOW,
        "reloader.session",
        "reloader.watching",
        "reloader.wire",
        "reloader.linker",
        "state",
    ),
    "reloader.client": ("reloader.errors", "reloader.wire"),
}
CLIENT_NEVER_LOADS = (
    "numpy", "structlog", "sqlite_utils", "sqlite3", "rich", "elftools", "capstone", "watchdog",
)  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_in(module: str, part: str) -> bool:
    return module == part or module.startswith(part + ".")


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(path: Path, *, running: bool = False) -> Iterator[tuple[int, str]]:
    """Yield line and name of everything of ours that a module imports, at any depth.

    Args:
        path: The module's file.
        running: Leave out what only the type checker imports.
    """
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    unseen = {n for node in nodes if running and is_for_types(node) for n in ast.walk(node)}
    for node in nodes:
        if node in unseen:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            # `from reloader.live import maps` names a module, `... import Target` its content
            names = [
                f"{module}.{alias.name}" if is_module(f"{module}.{alias.name}") else module
                for alias in node.names
            ]
        for name in names:
            if name.split(".")[0] in PACKAGES:
                yield node.lineno, name  # type: ignore[attr-defined]


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def test_imports_point_one_way() -> None:
    wrong: list[str] = []
    for path in MODULES:
        part = next((p for p in MAY_IMPORT if is_in(module_name(path), p)), None)
        if part is None:
            continue  # a module on top may import everything below
        allowed = (part, *MAY_IMPORT[part])
        wrong += [
            f"{path.relative_to(ROOT)}:{line} imports {name}"
            for line, name in imports(path)
            if not any(is_in(name, other) for other in allowed)
        ]
    assert wrong == []


def test_no_module_imports_itself_round_a_circle() -> None:
    names = {module_name(path) for path in MODULES}
    graph = {
        module_name(path): {n for _, n in imports(path, running=True)} & names
        for path in MODULES
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name] - {name}):
                visit(other, (*above, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_the_client_loads_nothing_heavy() -> None:
    code = "import reloader.cli, reloader.client, sys; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert loaded.intersection(CLIENT_NEVER_LOADS) == set()
    ours = {name for name in run.stdout.split() if name.startswith("reloader.")}
    assert {n for n in ours if is_in(n, "reloader.live") or is_in(n, "reloader.link")} == set()


def test_no_module_is_longer_than_a_reader_can_hold() -> None:
    sizes = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))]
    }
    too_long = {name: size for name, size in sizes.items() if size > MOST_LINES}
    assert too_long == {}


def test_every_module_says_in_one_sentence_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in MODULES
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_the_layout_on_paper_is_the_tree_on_disk() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "layout.py"))
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert guide == tool["written"](guide), "run `make layout`"


def test_every_package_is_in_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    on_disk = {
        module_name(path) for name in PACKAGES for path in (ROOT / name).rglob("__init__.py")
    }
    assert set(project["tool"]["setuptools"]["packages"]) == on_disk


def texts() -> list[Path]:
    listed = subprocess.run(
        ["/usr/bin/git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.split()  # fmt: skip
    assert listed, "not a git work tree"
    kinds = {".py", ".c", ".h", ".s", ".md", ".toml", ".sh", ".lock", ".txt", ""}
    paths = [ROOT / name for name in listed]
    return [path for path in paths if path.suffix in kinds and path.is_file()]


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("a registry's or mirror's host", r"://[\w.-]*(pypi|pythonhosted|debian|npmjs|mirror)"),
        ("a path of one machine", r"(?<![\w.}])/(work|home/\w+)/"),
        ("unfinished work", r"\b(TODO|FIXME|XXX)\b"),
    ],
)
def test_no_text_names(what: str, pattern: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in texts()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert found == [], what
