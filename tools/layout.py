# ruff: noqa: INP001 - a script, not a package
"""Writes the layout in CONTRIBUTING.md from the modules' own first sentences.

`python tools/layout.py` rewrites it; `tests/test_shape.py` holds the two together, so that a
new module has a first sentence that says its one reason to exist.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "CONTRIBUTING.md"
BLOCK = re.compile(r"(<!-- layout: [^\n]*-->\n```\n).*?(```\n)", re.DOTALL)
PACKAGES = ("reloader", "stubs", "state")


def first_sentence(path: Path) -> str:
    """Return a module's docstring up to its first full stop, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[a-z`)])\.(?:\s|$)", paragraph)[0]


def layout() -> str:
    """Return one line a package and a top-level module."""
    lines: list[str] = []
    for package in PACKAGES:
        folder = ROOT / package
        lines.append(f"{package + '/':24}{first_sentence(folder / '__init__.py')}")
        for path in sorted(folder.iterdir()):
            if path.suffix == ".py" and path.name != "__init__.py":
                lines.append(f"  {path.name:22}{first_sentence(path)}")
            elif (path / "__init__.py").exists():
                lines.append(f"  {path.name + '/':22}{first_sentence(path / '__init__.py')}")
    return "".join(line.rstrip() + "\n" for line in lines)


def written(guide: str) -> str:
    """Return the guide with the layout as it is now."""
    return BLOCK.sub(lambda found: found[1] + layout() + found[2], guide)


def main() -> int:
    """Rewrite the guide."""
    GUIDE.write_text(written(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
