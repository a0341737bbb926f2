"""The wheel's one peculiarity: it holds the agent, compiled here by `stubs/build.py`.

Everything else is in pyproject.toml.
"""

import runpy
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


class BuildWithAgent(build_py):
    """Compiles before the package's files are collected."""

    def run(self) -> None:
        """Compile the agent, then go on as usual."""
        # by path: an isolated build does not have this folder on sys.path
        runpy.run_path(str(Path(__file__).parent / "stubs" / "build.py"))["build"]()
        super().run()


class PlatformWheel(bdist_wheel):
    """Names the wheel for this platform, and for any Python 3: the agent uses no Python API."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return `py3-none-linux_x86_64`."""
        return ("py3", "none", super().get_tag()[2])


class NativeDistribution(Distribution):
    """Says that the wheel holds machine code."""

    def has_ext_modules(self) -> bool:
        """Return yes: the agent."""
        return True


setup(
    distclass=NativeDistribution,
    cmdclass={"build_py": BuildWithAgent, "bdist_wheel": PlatformWheel},
)
