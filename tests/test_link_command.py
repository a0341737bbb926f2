"""`reloader link`: the linker alone, executed and not."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from reloader.linker.jitdump import Function, write_dump
from stubs.build import build
from tests.support.daemon import CLI
from tests.support.linker import (
    HELLO,
    archive,
    compile_to,
    link,
    lua_words,
    sqlite_words,
)


@pytest.fixture(scope="module", autouse=True)
def agent() -> None:
    build()


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
        archive(tmp_path, f"lib{name}.a", f"{name}.o", "never.o")
    done = link(tmp_path, "main.o", "-L", ".", "-l", "two", "-l", "one", "--json")
    assert done.returncode == 7
    members = [Path(name).name for name in json.loads(done.stdout)["objects"]]
    assert members == ["main.o", "libone.a(one.o)", "libtwo.a(two.o)"]


def test_a_program_that_is_all_archive_starts_with_the_member_of_main(tmp_path: Path) -> None:
    compile_to(tmp_path, "main.c", "int main(void) { return 9; }")
    archive(tmp_path, "all.a", "main.o")
    assert link(tmp_path, "all.a").returncode == 9


def test_shared_libraries_are_loaded_by_path_and_by_name(tmp_path: Path) -> None:
    (tmp_path / "own.c").write_text("int own(int x) { return x * 3; }")
    command = ["gcc", "-shared", "-fPIC", "own.c", "-o", "libown.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    text = """
    #include <math.h>
    int own(int);
    int main(int c, char **v) { (void)v; return own((int)floor(c + 3.5)); }
    """
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


def test_thread_local_variables_start_with_their_values_in_every_thread(tmp_path: Path) -> None:
    text = """
    #include <pthread.h>
    static __thread int own = 7; __thread long zero;
    static void *work(void *p) { own += 3; zero++; *(int *)p = own; return 0; }
    int main(void) { pthread_t t; int seen; own = 20;
        pthread_create(&t, 0, work, &seen); pthread_join(t, 0); return own + seen + (int)zero; }
    """
    for flags in (("-O1",), ("-O1", "-fPIC"), ("-O1", "-fno-pic")):
        compile_to(tmp_path, "main.c", text, *flags)
        assert link(tmp_path, "main.o").returncode == 30
        assert link(tmp_path, "main.o", "--noexec", "--phony-externals").returncode == 0


def test_an_ifunc_is_what_its_resolver_chooses(tmp_path: Path) -> None:
    text = """
    static int two(void) { return 2; }
    static int three(void) { return 3; }
    static int (*choose(void))(void) { return two() == 2 ? three : two; }
    int number(void) __attribute__((ifunc("choose")));
    int (*pointer)(void) = number;
    int main(void) { return number() * 10 + pointer() + (pointer == number); }
    """
    compile_to(tmp_path, "main.c", text, "-O1")
    assert link(tmp_path, "main.o").returncode == 34


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
    shown = link(
        tmp_path, "main.o", "--noexec", "--show-addrs", "--show-times", "--base", "0x40000"
    )
    assert re.search(
        r"^  0x0000000000041000 .* code   \.text \S+main\.o$", shown.stdout, re.MULTILINE
    )
    assert re.search(r"^  0x0000000000041000 .* main$", shown.stdout, re.MULTILINE)
    assert re.search(r"^link +[\d.]+ ms$", shown.stderr, re.MULTILINE)
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


WRONG = {
    "none.o": "none.o: cannot be read: No such file or directory. Nothing was changed.",
    "text.o": "text.o",
    "main.o -lnone": "-lnone: no libnone.so or libnone.a in /usr/local/lib, ",
    "main.o --preload ./none.so": (
        "./none.so: cannot be loaded: ./none.so: cannot open shared object file: "
        "No such file or directory. Nothing was changed."
    ),
    "main.o --entry mian": (
        "mian: no linked object defines it, so there is nothing to call. Did you mean main? "
        "Nothing was changed. Name another function with --entry, or link only, with --noexec."
    ),
    "main.o --alias a=b": "--alias a=b: b is defined nowhere. Nothing was changed.",
    "main.o --base 0x1000": (
        "--base pins addresses that a process may not have free. Nothing was changed. "
        "Use it with --noexec."
    ),
    "main.o --noexec --map-section main.o,.none=0x1000": (
        "--map-section main.o,.none: no such section is linked; there is: .text"
    ),
    "wants.o": "gone is not defined anywhere",
    "wants.o --noexec": "gone is not defined anywhere",
}
MISUSED = {
    "main.o --map-section main.o=0x1000": "give FILE,SECTION=ADDR",
    "main.o --define-abs x": "`x` is not of the form NAME=ADDR",
    "main.o --base nine": "`nine` is not an address of 64 bits",
}


@pytest.mark.parametrize("words", [*WRONG, *MISUSED])
def test_what_cannot_be_linked_is_told_with_the_remedy(words: str, tmp_path: Path) -> None:
    compile_to(tmp_path, "main.c", "int main(void) { return 0; }")
    compile_to(tmp_path, "wants.c", "int gone(void); int main(void) { return gone(); }")
    (tmp_path / "text.o").write_text("no object")
    done = link(tmp_path, *words.split())
    assert (WRONG | MISUSED)[words] in done.stderr
    assert done.returncode == (1 if words in WRONG else 2)


def test_the_objects_of_lua_run_a_script(tmp_path: Path) -> None:
    (tmp_path / "t.lua").write_text("print(('x'):rep(3), math.floor(2.5), ...) os.exit(5)")
    done = link(tmp_path, *lua_words(), "--args", "t.lua", "--args", "last")
    assert (done.stdout, done.returncode) == ("xxx\t2\tlast\n", 5), done.stderr


def test_the_objects_of_sqlites_shell_answer_a_query(tmp_path: Path) -> None:
    query = "create table t(a);\ninsert into t values(20),(22);\nselect sum(a) from t;\n"
    done = link(tmp_path, *sqlite_words(), stdin=query)
    assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr
