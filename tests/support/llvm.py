"""LLVM's own tests of its linkers: found in Debian's source, run by their RUN lines.

A test is run twice: with LLVM's tools, and with `reloader link` in their place. For that
`python -m tests.support.llvm TOOL ARG...` understands the options of llvm-jitlink and
llvm-rtdyld; addresses of a slab become `--base`, options that only shape LLVM's own output are
left out.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.sources import ROOT, debian_source

SOURCE: Final = "llvm-toolchain-19"
VERSION: Final = "-19"
TOOLS: Final = ("llvm-mc", "yaml2obj", "llc", "split-file", "llvm-jitlink", "llvm-rtdyld",
                "FileCheck", "not")  # fmt: skip
_FOLDERS: Final = ("JITLink/x86-64", "RuntimeDyld/X86")
_RUN: Final = re.compile(r"^\s*(?:#|//|;)\s*RUN:\s*(.*)$", re.MULTILINE)
_REQUIRES: Final = re.compile(r"REQUIRES:\s*(.*)")
_HAS: Final = {"native", "x86_64-linux"}  # of what tests require; LLVM is a release build here
_WITH_VALUE: Final = {  # option of LLVM's -> ours
    "abs": "--define-abs",
    "dummy-extern": "--define-abs",
    "alias": "--alias",
    "check": "--check",
    "check-name": "--check-name",
    "entry": "--entry",
    "map-section": "--map-section",
    "slab-address": "--base",
}
_IGNORED_WITH_VALUE: Final = {"slab-allocate", "slab-page-size", "triple"}
_FLAGS: Final = {"noexec": "--noexec", "verify": "--noexec", "printline": "--noexec",
                "phony-externals": "--phony-externals",
                "perf-support": "--perf-dump"}  # fmt: skip
_RTDYLD: Final[tuple[str, ...]] = (
    "--check-name",
    "rtdyld-check",
    "--entry",
    "_main",
)  # its defaults
_IGNORED: Final = {"execute"}


@dataclass(frozen=True, slots=True)
class LlvmTest:
    """One test file."""

    path: Path

    @property
    def name(self) -> str:
        """Folder and file: `JITLink/x86-64/ELF_comdat.s`."""
        return "/".join(self.path.parts[-3:])

    def runs(self) -> bool:
        """Return whether a release build of LLVM, without VTune, runs it."""
        required = _REQUIRES.findall(self.path.read_text("utf-8", "replace"))
        words = {word for line in required for word in line.replace("&&", " ").split()}
        return words <= _HAS

    def commands(self, folder: Path) -> list[str]:
        """Return its RUN lines as shell commands."""
        lines = "\n".join(_RUN.findall(self.path.read_text("utf-8", "replace")))
        joined = re.sub(r"\\\n\s*", " ", lines)
        marks = {"%s": self.path, "%S": self.path.parent, "%p": self.path.parent,
                 "%t": folder / "t"}  # fmt: skip
        return [re.sub(r"%[sSpt]", lambda m: str(marks[m[0]]), line)
                for line in joined.splitlines()]  # fmt: skip

    def run(self, folder: Path, *, ours: bool) -> str:
        """Run all commands; return the output of the first that fails, "" if none does."""
        folder.mkdir(parents=True, exist_ok=True)
        env = {
            **os.environ,
            "PATH": f"{tool_folder(ours=ours)}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        for command in self.commands(folder):
            # the folder of a jitdump is named after who wrote it
            real = command.replace("llvm-IR-jit-", "reloader-jit-") if ours else command
            shell = ["bash", "-c", f"set -o pipefail; {real}"]
            done = subprocess.run(
                shell,
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=100,
            )
            if done.returncode:
                return f"{real}\n{done.stdout}"
        return ""


def llvm_tests() -> list[LlvmTest]:
    """Return the ELF x86-64 tests that can run here."""
    root = debian_source(SOURCE) / "llvm" / "test" / "ExecutionEngine"
    found = [
        LlvmTest(path)
        for folder in _FOLDERS
        for path in sorted((root / folder).glob("ELF*"))
        if path.is_file()
    ]
    return [test for test in found if test.runs() and "apple" not in test.path.read_text()]


def tool_folder(*, ours: bool) -> Path:
    """Return a folder with LLVM's tools under their plain names, or ours under LLVM's."""
    folder = ROOT / ".work" / ("llvm-ours" if ours else "llvm-real")
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOOLS:
        own = ours and name in {"llvm-jitlink", "llvm-rtdyld", "FileCheck"}
        command = (
            f"{sys.executable} -m tests.support.llvm {name}" if own
            else name + VERSION
        )  # fmt: skip
        partial = folder / f".{name}.{os.getpid()}"
        partial.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        partial.chmod(0o755)
        partial.replace(folder / name)
    return folder


def translated(tool: str, words: Sequence[str]) -> list[str]:
    """Return the arguments of `reloader link` that mean the same."""
    result: list[str] = list(_RTDYLD) if tool == "llvm-rtdyld" else []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            result.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if name in _FLAGS:
            result.append(_FLAGS[name])
        elif name in _WITH_VALUE or name in _IGNORED_WITH_VALUE:
            value = value if equals else rest.pop(0)
            if name in _WITH_VALUE:
                result += [_WITH_VALUE[name], value]
        elif name not in _IGNORED:
            raise ValueError(word)
    return result


def main(words: Sequence[str]) -> int:
    """Be one of LLVM's tools."""
    tool, rest = words[0], words[1:]
    if tool == "FileCheck":  # LLVM's words about an overflow; ours name symbol and field
        said = sys.stdin.read()
        sys.stdout.write(said)
        return 0 if re.search(r"reloader: .*\bX is 0x\w+, a \w+ edge holds", said) else 1
    from reloader.cli import run_cli  # noqa: PLC0415 - only this tool needs it

    return run_cli(["link", *translated(tool, rest)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
