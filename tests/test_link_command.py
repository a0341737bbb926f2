"""`reloader link` and `reloader run FILE.o`: programs without an executable."""

import json
import os
import re
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from reloader.host_command import host_command
from reloader.linker.jitdump import Function, write_dump
from stubs.build import build
from tests.support.daemon import CLI
from tests.support.programs import build_lua, build_sqlite

HELLO = """
#include <stdio.h>
#include <stdlib.h>
static int ready;
__attribute__((constructor(200))) static void second(void) { puts("second"); }
__attribute__((constructor(101))) static void first(void) { puts("first"); ready = 1; }
__attribute__((destructor)) static void last(void) { puts("destructor"); }
static void at_exit(void) { puts("atexit"); }
int main(int argc, char **argv)
{
    atexit(at_exit);
    fprintf(stderr, "to stderr\\n");
    for (int i = 1; i < argc; i++)
        printf("%s ", argv[i]);
    printf("%d\\n", ready);
    return 40 + argc;
}
"""


@pytest.fixture(scope="module", autouse=True)
def agent() -> None:
    build()


def compile_to(folder: Path, name: str, text: str, *flags: str, cc: str = "gcc") -> Path:
    source = folder / name
    source.write_text(text)
    target = source.with_suffix(".o")
    subprocess.run([cc, "-c", *flags, name, "-o", target.name], cwd=folder, check=True)
    return target


def link(folder: Path, *words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, "link", *map(str, words)],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize(
    "flags",
    [("-O2",), ("-O1", "-fPIC"), ("-O1", "-fno-pic"), ("-mcmodel=large", "-fno-pic")],
    ids=" ".join,
)
def test_main_is_called_between_constructors_and_destructors(
    flags: tuple[str, ...], tmp_path: Path
) -> None:
    compile_to(tmp_path, "hello.c", HELLO, *flags)
    done = link(tmp_path, "hello.o", "--args", "one", "--args", "--two")
    assert done.stdout == "first\nsecond\none --two 1\natexit\ndestructor\n"
    assert (done.stderr, done.returncode) == ("to stderr\n", 43)


def test_another_entry_is_called_and_a_signal_is_128_and_its_number(tmp_path: Path) -> None:
    compile_to(tmp_path, "entry.c", "int start(void) { __builtin_trap(); }")
    assert link(tmp_path, "entry.o", "--entry", "start").returncode == 128 + 4


def test_members_are_pulled_as_they_are_needed(tmp_path: Path) -> None:
    compile_to(tmp_path, "main.c", "int one(void); int main(void) { return one(); }")
    compile_to(tmp_path, "one.c", "int two(void); int one(void) { return two() + 1; }")
    compile_to(tmp_path, "two.c", "int two(void) { return 6; }")
    compile_to(tmp_path, "never.c", "int gone(void); int never(void) { return gone(); }")
    for name in ("one", "two"):
        command = ["ar", "rcs", f"lib{name}.a", f"{name}.o", "never.o"]
        subprocess.run(command, cwd=tmp_path, check=True)
    done = link(tmp_path, "main.o", "-L", ".", "-l", "two", "-l", "one", "--json")
    assert done.returncode == 7
    members = [Path(name).name for name in json.loads(done.stdout)["objects"]]
    assert members == ["main.o", "libone.a(one.o)", "libtwo.a(two.o)"]


def test_a_program_that_is_all_archive_starts_with_the_member_of_main(tmp_path: Path) -> None:
    compile_to(tmp_path, "main.c", "int main(void) { return 9; }")
    subprocess.run(["ar", "rcs", "all.a", "main.o"], cwd=tmp_path, check=True)
    assert link(tmp_path, "all.a").returncode == 9


def test_shared_libraries_are_loaded_by_path_and_by_name(tmp_path: Path) -> None:
    (tmp_path / "own.c").write_text("int own(int x) { return x * 3; }")
    command = ["gcc", "-shared", "-fPIC", "own.c", "-o", "libown.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    text = "#include <math.h>\nint own(int); int main(int c, char **v) { (void)v; return own((int)floor(c + 3.5)); }"
    compile_to(tmp_path, "main.c", text)
    assert link(tmp_path, "main.o", "-lm", "--preload", "./libown.so").returncode == 12
    assert link(tmp_path, "main.o", "-lm", "-L", ".", "-l", "own").returncode == 12
    assert link(tmp_path, "main.o", "-lm", "libown.so").returncode == 12


def test_names_can_be_defined_and_aliased(tmp_path: Path) -> None:
    text = """
    extern char number[]; int twin(void); int other(const char *);
    int real(void) { return 30; }
    int main(void) { return twin() + (int)(unsigned long)number + other("ab"); }
    """
    compile_to(tmp_path, "main.c", text, "-fno-pic")
    done = link(tmp_path, "main.o", "--define-abs", "number=0xa", "--alias", "twin=real",
                "--alias", "other=strlen")  # fmt: skip
    assert done.returncode == 42, done.stderr


def test_a_harness_sees_statics_and_replaces_functions(tmp_path: Path) -> None:
    tested = """
    int read_clock(void) { return 1; }
    static int __attribute__((noinline)) twice(int x) { return x * 2; }
    int tick(void) { return twice(read_clock()); }
    """
    harness = """
    int twice(int); int tick(void);
    int read_clock(void) { return 10; }
    int main(void) { return tick() + twice(3); }
    """
    compile_to(tmp_path, "tested.c", tested, "-O0", "-ffunction-sections")
    compile_to(tmp_path, "harness.c", harness)
    done = link(tmp_path, "--harness", "harness.o", "tested.o")
    assert done.returncode == 26, done.stderr


def test_exceptions_unwind_through_linked_frames(tmp_path: Path) -> None:
    text = """
    #include <stdexcept>
    #include <string>
    static int thrower(int x) { if (x) throw std::runtime_error("seven"); return 0; }
    int main(int argc, char **) {
        std::string s = "x";
        try { thrower(argc); } catch (const std::exception &e) { s += e.what(); }
        return (int)s.size();
    }
    """
    compile_to(tmp_path, "main.cc", text, "-O1", cc="g++")
    done = link(tmp_path, "main.o", "--preload", "libstdc++.so.6")
    assert done.returncode == 6, done.stderr


def test_nothing_runs_with_noexec_and_addresses_are_pinned(tmp_path: Path) -> None:
    text = "int missing(int); int data = 5; int main(void) { return missing(data); }"
    compile_to(tmp_path, "main.c", text, "-O1")
    checks = tmp_path / "checks.txt"
    checks.write_text(
        "# jitlink-check: section_addr(main.o, .data) = 0x700010000\n"
        "# jitlink-check: *{4}data = 5\n"
        "# jitlink-check: missing = 0\n"
        "# mine: data = 0x700010000\n"
        "# mine: (*{8}stub_addr(main.o, missing))[31:0] = 0xfa1e0ff3\n"
        "# mine: *{8}(got_addr(main.o, missing)) = 0\n"
    )
    words = ("main.o", "--noexec", "--phony-externals", "--base", "0x700000000",
             "--map-section", "main.o,.data=0x700010000", "--check", checks)  # fmt: skip
    done = link(tmp_path, *words)
    assert (done.stdout, done.returncode) == (f"{checks}: 3 checks hold\n", 0), done.stderr
    done = link(tmp_path, *words, "--check-name", "mine")
    assert done.returncode == 0, done.stderr
    done = link(tmp_path, *words, "--check-name", "none")
    assert done.returncode == 1
    assert "no line begins with `# none:`" in done.stderr


def test_checks_of_an_executed_program_are_made_in_its_memory_before_it_runs(
    tmp_path: Path,
) -> None:
    text = "int data = 5; int main(void) { return data++; }"
    compile_to(tmp_path, "main.c", text)
    (tmp_path / "good").write_text("# jitlink-check: *{4}data = 5\n")
    (tmp_path / "bad").write_text("# jitlink-check: *{4}data = 6\n")
    assert link(tmp_path, "main.o", "--check", "good").returncode == 5
    done = link(tmp_path, "main.o", "--check", "bad")
    assert done.returncode == 1
    assert "Expression '*{4}data = 6' is false: 0x5 != 0x6" in done.stderr


def test_addresses_graph_and_times_are_shown(tmp_path: Path) -> None:
    compile_to(tmp_path, "main.c", "int data = 5; int main(void) { return data; }")
    shown = link(tmp_path, "main.o", "--noexec", "--show-addrs", "--show-times", "--base", "0x40000")
    assert re.search(r"^  0x0000000000040000 .* code   \.text \S+main\.o$", shown.stdout, re.M)
    assert re.search(r"^  0x0000000000040000 .* main$", shown.stdout, re.M)
    assert re.search(r"^link +[\d.]+ ms$", shown.stderr, re.M)
    graph = link(tmp_path, "main.o", "--noexec", "--show-graph").stdout
    assert "R_X86_64_PC32 data -0x4" in graph
    answer = json.loads(link(tmp_path, "main.o", "--noexec", "--json").stdout)
    assert [row["name"] for row in answer["symbols"] if row["size"] == 4] == ["data"]
    assert {row["section"] for row in answer["sections"]} >= {".text", ".data"}


def test_a_jitdump_has_every_function_and_is_mapped_by_the_host(tmp_path: Path) -> None:
    text = r"""
    #include <stdio.h>
    #include <string.h>
    int main(void) { char line[512]; FILE *maps = fopen("/proc/self/maps", "r");
        while (fgets(line, sizeof line, maps))
            if (strstr(line, "/jit-") && strstr(line, "r-xp")) return 3;
        return 0; }
    """
    compile_to(tmp_path, "main.c", text)
    done = subprocess.run(
        [*CLI, "link", "main.o", "--perf-dump"], cwd=tmp_path, check=False,
        capture_output=True, text=True, env={**os.environ, "JITDUMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    dump = Path(done.stderr.strip().rpartition(" ")[2]).read_bytes()
    assert dump[:4] == b"DTiJ"
    assert b"main\0" in dump


def test_a_jitdump_is_laid_out_as_perf_reads_it(tmp_path: Path) -> None:
    data = write_dump(tmp_path, 77, [Function("f", 0x1000, b"\xc3")]).read_bytes()
    assert (tmp_path / "jit-77.dump").exists()
    assert int.from_bytes(data[8:12], "little") == 40  # the header's size
    record = data[40:]
    assert int.from_bytes(record[4:8], "little") == len(record) == 56 + 2 + 1
    assert record[-3:] == b"f\0\xc3"


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("none.o",), 1, "none.o: cannot be read: No such file or directory. Nothing was changed."),
        (("text.o",), 1, "text.o"),
        (("main.o", "-lnone"), 1, "-lnone: no libnone.so or libnone.a in /usr/local/lib, "),
        (("main.o", "--preload", "./none.so"), 1, "./none.so: cannot be loaded: ./none.so: cannot"
         " open shared object file: No such file or directory. Nothing was changed."),
        (("main.o", "--entry", "mian"), 1, "mian: no linked object defines it, so there is nothing"
         " to call. Did you mean main? Nothing was changed. Name another function with --entry, or"
         " link only, with --noexec."),
        (("main.o", "--alias", "a=b"), 1, "--alias a=b: b is defined nowhere. Nothing was changed."),
        (("main.o", "--base", "0x1000"), 1, "--base pins addresses that a process may not have free."
         " Nothing was changed. Use it with --noexec."),
        (("main.o", "--noexec", "--map-section", "main.o,.none=0x1000"), 1,
         "--map-section main.o,.none: no such section is linked; there is: .text"),
        (("main.o", "--map-section", "main.o=0x1000"), 2, "give FILE,SECTION=ADDR"),
        (("main.o", "--define-abs", "x"), 2, "`x` is not of the form NAME=ADDR"),
        (("main.o", "--base", "nine"), 2, "`nine` is not an address of 64 bits"),
        (("wants.o",), 1, "gone is not defined anywhere"),
        (("wants.o", "--noexec"), 1, "gone is not defined anywhere"),
    ],
)  # fmt: skip
def test_what_cannot_be_linked_is_told_with_the_remedy(
    words: tuple[str, ...], status: int, told: str, tmp_path: Path
) -> None:
    compile_to(tmp_path, "main.c", "int main(void) { return 0; }")
    compile_to(tmp_path, "wants.c", "int gone(void); int main(void) { return gone(); }")
    (tmp_path / "text.o").write_text("no object")
    done = link(tmp_path, *words)
    assert told in done.stderr
    assert done.returncode == status


def lua_words() -> list[str]:
    lua = build_lua()
    return [str(lua.folder / "lua.o"), str(lua.folder / "liblua.a"), "-lm"]


def sqlite_words() -> list[str]:
    return [*map(str, build_sqlite().objects), "-lreadline", "-lz", "-lm"]


def test_the_objects_of_lua_run_a_script(tmp_path: Path) -> None:
    (tmp_path / "t.lua").write_text("print(('x'):rep(3), math.floor(2.5), ...) os.exit(5)")
    done = link(tmp_path, *lua_words(), "--args", "t.lua", "--args", "last")
    assert (done.stdout, done.returncode) == ("xxx\t2\tlast\n", 5), done.stderr


def test_the_objects_of_sqlites_shell_answer_a_query(tmp_path: Path) -> None:
    query = "create table t(a);\ninsert into t values(20),(22);\nselect sum(a) from t;\n"
    done = link(tmp_path, *sqlite_words(), stdin=query)
    assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Path]:
    """A folder with a daemon of its own, which ends with the test."""
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run))
    folder = tmp_path / "game"
    folder.mkdir()
    yield folder
    subprocess.run([*CLI, "stop"], cwd=folder, capture_output=True, check=False)


def run(folder: Path, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, "run", *words], cwd=folder, input=stdin, capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip


def test_run_takes_objects_in_place_of_a_program(project: Path) -> None:
    compile_to(project, "hello.c", HELLO)
    done = run(project, "hello.o", "--", "one", "--two")
    assert done.stdout == "first\nsecond\none --two 1\natexit\ndestructor\n"
    assert done.returncode == 43
    assert "hello.o" in done.stderr


def test_run_of_objects_that_do_not_link_says_why_and_ends_with_1(project: Path) -> None:
    compile_to(project, "main.c", "int gone(void); int main(void) { return gone(); }")
    done = run(project, "main.o")
    assert done.returncode == 1
    assert "gone is not defined anywhere" in done.stderr
    compile_to(project, "lib.c", "int lib(void) { return 1; }")
    done = run(project, "lib.o")
    assert done.returncode == 1
    assert "main: no linked object defines it" in done.stderr


def test_run_of_lua_and_of_sqlites_shell_works_from_their_objects(project: Path) -> None:
    (project / "t.lua").write_text("print(string.format('%d', 6 * 7)) os.exit(5)")
    done = run(project, "--quiet", *lua_words(), "--", "t.lua")
    assert (done.stdout, done.returncode) == ("42\n", 5), done.stderr
    done = run(project, "--quiet", *sqlite_words(), stdin="select 6 * 7;\n")
    assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr


MAIN = """
#include <stdio.h>
int answer(int);
int main(void) { int n; setvbuf(stdout, NULL, _IOLBF, 0);
    while (scanf("%d", &n) == 1) printf("%d\\n", answer(n)); return 0; }
"""
ANSWER = "static int calls; int answer(int n) { return n %s 2 + 100 * ++calls; }"


def test_objects_and_archive_members_reload_in_a_program_without_executable(
    project: Path,
) -> None:
    compile_to(project, "main.c", MAIN)
    compile_to(project, "answer.c", ANSWER % "+")
    subprocess.run(["ar", "rcs", "all.a", "answer.o"], cwd=project, check=True)
    process = subprocess.Popen(
        [*CLI, "run", "main.o", "all.a"], cwd=project, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with process:
        assert process.stdin
        assert process.stdout

        def ask() -> int:
            assert process.stdin
            assert process.stdout
            process.stdin.write("10\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        assert ask() == 112
        compile_to(project, "answer.c", ANSWER % "*")
        subprocess.run(["ar", "rcs", "new.a", "answer.o"], cwd=project, check=True)
        (project / "new.a").rename(project / "all.a")
        waited = [*CLI, "wait", "--generation", "2", "--timeout", "20"]
        subprocess.run(waited, cwd=project, check=True, capture_output=True)
        assert ask() == 220  # new code, and `calls` went on
        process.stdin.close()
        assert process.wait(20) == 0


def test_words_before_the_dashes_are_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compile_to(tmp_path, "main.c", "int main(void) { return 0; }")
    subprocess.run(["ar", "rcs", "all.a", "main.o"], check=True)
    command = host_command(["main.o", "all.a", "-lm", "-Llib", "--", "-l", "x.o"])
    assert command is not None
    here = str(tmp_path)
    assert command.words == (f"{here}/main.o", f"{here}/all.a", "-lm", f"-L{here}/lib")
    assert command.watch == (f"{here}/main.o", f"{here}/all.a")
    assert command.argv == ("main.o", "-l", "x.o")
    assert host_command(["/bin/true", "main.o"]) is None
    assert host_command(["none.o"]) is None
