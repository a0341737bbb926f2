"""What gcc and clang emit for C, with many flags: reloaded into running programs, and the answers checked."""

import os
import socket
import subprocess
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from reloader.live.inject import adopt, prepare_spawn
from reloader.live.retire import RetirePolicy
from reloader.session import Session
from state.store import Store
from tests.support.features import FEATURES, Feature
from tests.support.road import MAIN, Program, attached, reload

pytestmark = [pytest.mark.live, pytest.mark.slow]

PATIENT = RetirePolicy(max_stop_ms=5000)  # a loaded machine must not decide a test
FLAGS = (
    "gcc -O0", "gcc -O1 -g", "gcc -O2", "gcc -O3 -g", "gcc -Os", "gcc -O2 -fPIC", "gcc -O0 -fPIC -g",
    "gcc -O2 -fno-pie -no-pie", "gcc -O0 -fno-pie -no-pie", "gcc -O3 -fno-pie -no-pie -fno-plt",
    "gcc -O2 -ffunction-sections -fdata-sections", "gcc -O3 -fno-pie -no-pie -ffunction-sections -fdata-sections",
    "gcc -O2 -fcommon", "gcc -O2 -fcf-protection=none -fno-plt", "gcc -O1 -fcf-protection=full -mcmodel=small",
    "clang -O0", "clang -O1 -g", "clang -O2", "clang -O3", "clang -Os -fPIC", "clang -O2 -fno-pie -no-pie",
    "clang -O2 -ffunction-sections -fdata-sections -fno-plt", "clang -O3 -fcommon -fcf-protection=full -g",
)  # fmt: skip


class Built:
    """All features in one program, and the objects of their other versions."""

    def __init__(self, folder: Path, flags: str) -> None:
        compiler, *words = flags.split()
        link = [word for word in words if word == "-no-pie"]
        if "-fdata-sections" in words:
            link.append("-Wl,--gc-sections")
        self.program = Program(folder, [w for w in words if w != "-no-pie"], link, compiler)
        texts = {feature.name: feature.text for feature in FEATURES}
        later = {feature.name: feature.second() for feature in FEATURES}
        self.first = self.compile("first", {"main": MAIN, "dispatch": dispatcher(), **texts})
        self.second = self.compile("second", later)

    def compile(self, kind: str, texts: dict[str, str]) -> dict[str, bytes]:
        """Compile texts as NAME.c, in a folder of their own; return the objects."""
        folder = self.program.folder / kind
        folder.mkdir()
        for name, text in texts.items():
            (folder / f"{name}.c").write_text(text)
        command = [self.program.cc, *self.program.flags, "-c"]

        def run(names: list[str]) -> None:
            subprocess.run([*command, *(f"{name}.c" for name in names)], cwd=folder, check=True)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(run, [list(texts)[::2], list(texts)[1::2]]))
        return {name: (folder / f"{name}.o").read_bytes() for name in texts}

    def put(self, objects: dict[str, bytes], *names: str) -> list[Path]:
        """Place some objects where the build wrote them."""
        paths = [self.program.folder / f"{name}.o" for name in names]
        for path, name in zip(paths, names, strict=True):
            path.write_bytes(objects[name])
        return paths

    def ask(self, feature: Feature, number: int) -> int:
        row = FEATURES.index(feature)
        return self.program.ask(row * 1000 + number)

    def start(self) -> None:
        self.put(self.first, *self.first)
        self.program.link()
        self.program.start()


def dispatcher() -> str:
    """Return C that calls features, every second one through a constant table."""
    names = [feature.name for feature in FEATURES]
    lines = [f"int {name}(int);" for name in names]
    lines += ["static int (*const table[])(int) = {", *(f"{name}," for name in names), "};"]
    lines += ["int answer(int n) { switch (n / 1000) {"]
    lines += [f"case {row}: return {name}(n % 1000);" for row, name in enumerate(names) if row % 2]
    return "\n".join([*lines, "} return table[n / 1000](n % 1000); }"])


@pytest.fixture(params=FLAGS)
def built(tmp_path: Path, request: pytest.FixtureRequest) -> Generator[Built]:
    made = Built(tmp_path, request.param)
    yield made
    made.program.stop()


def test_every_feature_is_replaced_and_comes_back(built: Built) -> None:
    built.start()
    wrong: list[str] = []

    def check(feature: Feature, when: str, answers: tuple[tuple[int, int], ...]) -> None:
        wrong.extend(
            f"{feature.name} {when}: {number} gives {got}, not {expected}"
            for number, expected in answers
            if (got := built.ask(feature, number)) != expected
        )

    with attached(built.program) as session:
        session.retiring.retirer.policy = PATIENT
        for feature in FEATURES:
            check(feature, "before", feature.before)
            outcome = reload(session, *built.put(built.second, feature.name))
            if outcome.state != "live":
                wrong.append(f"{feature.name} {outcome.state}: {outcome.error}")
                continue
            check(feature, "after", feature.after)
        session.retiring.attempt()
        names = [feature.name for feature in FEATURES]
        outcome = reload(session, *built.put(built.first, *names))
        assert (outcome.state, outcome.error) == ("live", "")
        for feature in FEATURES:
            check(feature, "back", feature.back or feature.before)
    assert not wrong, "\n".join(wrong)
    assert built.program.stop() == 0
