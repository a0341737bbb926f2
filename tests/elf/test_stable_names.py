"""What rustc calls its files: the parts that change from build to build do not count."""

import pytest

from reloader.elf.stable_names import newest, stable_member, stable_path

CRATE = "/p/target/debug/incremental/server-2n5n811mkhdln"
UNIT = "exd9w6k5cggp7dke4rwadwkat.o"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/p/build/hud.o", "/p/build/hud.o"),
        (f"{CRATE}/s-hodfz3uslx-080f97e-0hvvdpc5vvivi98e1/{UNIT}", f"{CRATE}/{UNIT}"),
        (f"{CRATE}/s-hodfzp3emb-pl7vox-3mm7bcazznuij/5dnp98.o", f"{CRATE}/5dnp98.o"),
        (f"{CRATE}/s-hodfz3uslx-080f97e-working/{UNIT}", None),
        ("/p/target/debug/deps/server-99cd.cucqjc.0mqzn6x.rcgu.o", None),
        ("/p/deps/util-b3.util.3414-cgu.0.rcgu.o", "/p/deps/util-b3.util.3414-cgu.0.rcgu.o"),
        (
            "/p/deps/util-b3.util.3414-cgu.0.1x2.rcgu.o",
            "/p/deps/util-b3.util.3414-cgu.0.rcgu.o",
        ),
    ],
)
def test_a_file_is_known_by_what_stays(path: str, name: str | None) -> None:
    assert stable_path(path) == name


@pytest.mark.parametrize(
    ("member", "name"),
    [
        ("hud.o", "hud.o"),
        ("util-dbe8.07fyk1g8da8.1qyah2w.rcgu.o", "util-dbe8.07fyk1g8da8.rcgu.o"),
        ("util-8fd8.10ilmwwwqx.rcgu.o", "util-8fd8.10ilmwwwqx.rcgu.o"),
        ("util-5ff1.util.e94219cf-cgu.7.rcgu.o", "util-5ff1.util.e94219cf-cgu.7.rcgu.o"),
        ("util-5ff1.util.e94219cf-cgu.7.1ab.rcgu.o", "util-5ff1.util.e94219cf-cgu.7.rcgu.o"),
    ],
)
def test_a_member_is_known_by_what_stays(member: str, name: str) -> None:
    assert stable_member(member) == name


def test_the_newest_session_of_each_crate_counts_and_nothing_older() -> None:
    old, new = f"{CRATE}/s-hodfz3uslx-1-aa", f"{CRATE}/s-hodg082ooq-0-bb"
    other = "/p/target/debug/incremental/util-1/s-hoaaaaaaaa-1-cc"
    paths = [f"{old}/a.o", f"{old}/gone.o", f"{new}/a.o", f"{other}/a.o", "/p/plain.o"]
    assert newest(paths) == [
        (f"{new}/a.o", f"{CRATE}/a.o"),
        (f"{other}/a.o", "/p/target/debug/incremental/util-1/a.o"),
        ("/p/plain.o", "/p/plain.o"),
    ]
