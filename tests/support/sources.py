"""Sources of real programs, from Debian's source packages."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class SourceError(Exception):
    """A Debian source package could not be fetched; the text is apt's."""


@cache
def debian_source(name: str) -> Path:
    """Return the unpacked, patched tree of a Debian source package.

    The tree is shared by all tests and by runs at the same time: copy it (`copied_source`)
    before building in it.

    Args:
        name: The source package, for example `lua5.4`.

    Raises:
        SourceError: apt could not bring it.
    """
    script = ROOT / "tools" / "sources.sh"
    run = subprocess.run([script, name], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise SourceError(run.stderr)
    return Path(run.stdout.strip())


def copied_source(name: str, to: Path) -> Path:
    """Return a private copy of a package's tree, `to/NAME`, with its time stamps kept."""
    return Path(shutil.copytree(debian_source(name), to / name, symlinks=True))
