"""What was linked is mapped in a child and called: the answer has to be right."""

import subprocess
from pathlib import Path

import pytest

from tests.support.link import FAR, LOW, FakeArena, compile_object, link_first
from tests.support.link_child import build_host, host_names, run_linked

FIRST = r"""
extern int host_add(int, int), host_calls;
extern int twice(int);
extern const char *words[];
static int counter = 5;
int zeroes[64];
static int add_one(int x) { return x + 1; }
static int add_two(int x) { return x + 2; }
static int (*const table[])(int) = {add_one, add_two, twice};
static int (*volatile chosen)(int) = add_two;
__attribute__((noinline)) static int choose(int x)
{
    switch (x) {
    case 0: return 11;
    case 1: return host_add(x, 3);
    case 2: return twice(x) + counter;
    case 3: return words[1][1];
    case 4: return zeroes[3] + host_calls;
    case 5: return 99;
    case 6: chosen = add_one; return chosen(6);
    default: return -1;
    }
}
int entry(int x)
{
    int sum = 0;
    for (int i = 0; i < 8; i++)
        sum = sum * 7 + choose(i);
    for (unsigned i = 0; i < sizeof table / sizeof *table; i++)
        sum = sum * 3 + table[i](x);
    zeroes[3] += sum & 15;
    counter++;
    return sum * 2 + counter + zeroes[3] + chosen(1);
}
"""
SECOND = r"""
const char *words[] = {"abc", "defg", "hij"};
static const char *const more[] = {"klm", "nop"};
int twice(int x) { return 2 * x + (more[x & 1][0] == 'n'); }
"""
HOST_SIDE = "int host_calls; int host_add(int a, int b) { host_calls++; return a + b; }"

MODES = [
    (f"-O{level} {pic} {sections}".strip(), LOW)
    for level in "0123s"
    for pic in ("-fPIC", "-fno-pic")
    for sections in ("", "-ffunction-sections -fdata-sections")
] + [
    ("-O2 -fPIC", FAR),
    ("-O0 -fPIC -ffunction-sections", FAR),
    ("-O2 -fPIC -fno-plt", FAR),
    ("-O2 -fPIC -fno-plt", LOW),
    ("-O2 -fPIC -mcmodel=large", FAR),
    ("-O1 -fno-pic -mcmodel=large", FAR),
    ("-O2 -fPIC -mcmodel=medium -mlarge-data-threshold=8", LOW),
    ("-O2 -fPIC -fcf-protection=full -fcommon", LOW),
    ("-O2 -g -fPIC", LOW),
    ("-Os -fno-pic -fno-jump-tables -fno-asynchronous-unwind-tables", LOW),
]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_host(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Return the answer of the same functions linked by ld."""
    folder = tmp_path_factory.mktemp("expected")
    main = "int printf(const char *, ...); int entry(int);"
    main += 'int main(void) { printf("%d", entry(3)); return 0; }'
    paths: list[str] = []
    for name, text in (("a.c", FIRST), ("b.c", SECOND), ("h.c", HOST_SIDE), ("m.c", main)):
        (folder / name).write_text(text)
        paths.append(str(folder / name))
    program = str(folder / "program")
    command = ["gcc", "-O1", "-fwrapv", *paths, "-o", program]
    subprocess.run(command, check=True)
    return int(subprocess.run([program], check=True, capture_output=True).stdout)


@pytest.mark.parametrize(("flags", "base"), MODES)
def test_linked_objects_give_the_answer_of_a_program(
    tmp_path: Path, host: Path, expected: int, flags: str, base: int
) -> None:
    options = ["-fwrapv", *flags.split()]
    objects = [
        compile_object(tmp_path, "a.c", FIRST, *options),
        compile_object(tmp_path, "b.c", SECOND, *options),
    ]
    arena = FakeArena(base)
    linked = link_first(objects, host_names(host), arena)
    assert run_linked(host, linked, arena, b"entry", 3) == expected


@pytest.mark.parametrize("relax", [True, False])
def test_got_accesses_give_the_same_answer_relaxed_or_not(
    tmp_path: Path, host: Path, expected: int, *, relax: bool
) -> None:
    options = ["-fwrapv", "-O2", "-fPIC", "-fno-plt"]
    objects = [
        compile_object(tmp_path, "a.c", FIRST, *options),
        compile_object(tmp_path, "b.c", SECOND, *options),
    ]
    arena = FakeArena(LOW)
    linked = link_first(objects, host_names(host), arena, relax=relax)
    assert run_linked(host, linked, arena, b"entry", 3) == expected


THREADS = r"""
extern __thread int host_thread, host_other;
int entry(int x) { host_thread += x; return host_thread * 100 + host_other; }
"""


@pytest.mark.parametrize(
    "flags",
    [
        "-fPIC -ftls-model=global-dynamic",
        "-fPIC -fno-plt -ftls-model=global-dynamic",
        "-fPIC -ftls-model=local-dynamic",
        "-fPIC -fno-plt -ftls-model=local-dynamic",
        "-fPIC -ftls-model=initial-exec",
        "-fno-pic -ftls-model=local-exec",
        "-fPIC -mtls-dialect=gnu2 -ftls-model=global-dynamic",
        "-fPIC -mtls-dialect=gnu2 -ftls-model=local-dynamic",
    ],
)
@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_every_thread_local_model_reaches_the_variable_of_this_thread(
    tmp_path: Path, host: Path, flags: str, level: str
) -> None:
    thread = compile_object(tmp_path, "t.c", THREADS, level, *flags.split())
    arena = FakeArena(LOW)
    linked = link_first([thread], host_names(host), arena)
    assert run_linked(host, linked, arena, b"entry", 7) == 4702


WALK = r"""
extern int host_walk(void);
__attribute__((noinline)) int deeper(int x) { return host_walk() - 1; }
int unused(int x) { return x; }
int entry(int x) { return deeper(x) + x; }
"""


@pytest.mark.parametrize("sections", ["", "-ffunction-sections"])
def test_an_unwinder_finds_its_way_through_loaded_frames(
    tmp_path: Path, host: Path, sections: str
) -> None:
    code = compile_object(tmp_path, "w.c", WALK, "-O2", *sections.split())
    arena = FakeArena(LOW)
    linked = link_first([code], host_names(host), arena)
    assert (
        run_linked(host, linked, arena, b"entry", 3) == 23
    )  # two of our frames, one of main; less 1, plus 3
