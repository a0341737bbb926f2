"""What stands in the way of entering real processes is said, before and at attach, unharmed."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from reloader.errors.live import AgentStartError, AttachError
from reloader.live import doctor, tracing
from reloader.live.doctor import examine
from reloader.live.inject import attach
from reloader.live.maps import read_maps
from tests.support.live import compile_program, compile_text, hear, running, say, until

pytestmark = pytest.mark.live
ROOT = Path(__file__).resolve().parent.parent.parent
NOBODY = 65534
WAITS = r"""
#include <unistd.h>
int main(void) {
  char byte;
  return write(1, "r\n", 2) != 2 || read(0, &byte, 1) < 0;
}
"""
KILL, TRAP, EPERM, ENOSYS, LOG = "0x80000000", "0x30000", "0x50001", "0x50026", "0x7ffc0000"
MEMFD_CREATE, MMAP, MEMBARRIER, USERFAULTFD, CLONE3 = "319", "9", "324", "323", "435"
EXECUTABLE = ("2", "4")  # the third argument has PROT_EXEC


def refused(pid: int) -> str:
    """Fail to enter a process; what says so is what the doctor says. Return it."""
    reasons = [str(finding) for finding in examine(pid) if finding.level == "error"]
    with pytest.raises(AttachError) as error:
        attach(pid)
    lines = "\n".join(f"  {reason}" for reason in reasons)
    text = str(error.value)
    assert text == f"process {pid} cannot be entered:\n{lines}\nNothing was changed."
    return text


def answers(child: subprocess.Popen[str]) -> None:
    say(child)
    assert hear(child) == "41"
    assert child.poll() is None


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((KILL, MEMFD_CREATE), "that ends it at memfd_create."),
        ((EPERM, MEMFD_CREATE), "that denies memfd_create (EPERM)."),
        ((KILL, MMAP, *EXECUTABLE), "that ends it at mmap with PROT_EXEC."),
        ((EPERM, MMAP, *EXECUTABLE), "that denies mmap with PROT_EXEC (EPERM)."),
        ((TRAP, MEMBARRIER), "that ends it at membarrier."),
        ((KILL, USERFAULTFD), "that ends it at userfaultfd."),
        ((KILL, USERFAULTFD, "0", "0", "thread"), "that ends it at userfaultfd."),
        ((EPERM, CLONE3), "that denies clone3 (EPERM)."),
    ],
)
def test_a_seccomp_filter_that_would_end_the_program_or_deny_a_call_is_read_beforehand(
    words: Sequence[str], text: str
) -> None:
    with running([compile_program("sandboxed"), *words]) as child:
        assert hear(child) == "ready"
        said = refused(child.pid)
        assert f"process {child.pid} has a seccomp filter {text} Start the program" in said
        answers(child)


@pytest.mark.parametrize(
    "words", [(EPERM, USERFAULTFD), (LOG, MEMFD_CREATE), (ENOSYS, CLONE3), (KILL, "169")]
)
def test_a_seccomp_filter_that_leaves_what_is_needed_is_no_obstacle(
    words: Sequence[str],
) -> None:
    with running([compile_program("sandboxed"), *words]) as child:
        assert hear(child) == "ready"
        assert examine(child.pid) == []
        process = attach(child.pid)
        assert process.resolve([b"getpid"]).all()
        process.synchronise()
        answers(child)
        process.close()


# With fewer rights, once everything is imported: our folder may be closed to others.
WITH_LESS = """
import codecs, ctypes, os, struct, sys
sys.path.insert(0, ".")
from reloader.live.doctor import examine
from reloader.live.inject import attach
from reloader.errors.base import ReloaderError
codecs.lookup("ascii")
pid, user, filtered = map(int, sys.argv[1:])
if user:
    os.setgroups([]); os.setgid(user); os.setuid(user)
if filtered:
    rows = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000))
    program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 1, ctypes.addressof(rows)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
reasons = "".join(f"  {found}\\n" for found in examine(pid) if found.level == "error")
print(reasons, end="")
if reasons:
    try:
        attach(pid)
    except ReloaderError as error:
        assert str(error) == f"process {pid} cannot be entered:\\n{reasons}Nothing was changed."
"""
LESS_CAPABLE = ("/usr/bin/setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace")


def refused_with_less(
    pid: int, user: int = 0, wrapper: Sequence[str] = (), *, filtered: bool = False
) -> str:
    """Return what hinders a daemon with fewer rights."""
    words = [*wrapper, sys.executable, "-c", WITH_LESS, str(pid), str(user), str(int(filtered))]
    return subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


@contextmanager
def strangers(path: Path, *words: str) -> Generator[subprocess.Popen[str]]:
    """Run a program as another user, by its descriptor: its folder is closed to them."""
    with path.open("rb") as file:
        become = [
            "/usr/bin/setpriv",
            f"--reuid={NOBODY}",
            f"--regid={NOBODY}",
            "--clear-groups",
        ]
        program = f"/proc/self/fd/{file.fileno()}"
        with running([*become, program, *words], pass_fds=[file.fileno()]) as child:
            assert hear(child).startswith("ready")
            yield child


def test_another_users_process_is_refused_to_a_daemon_that_is_not_root() -> None:
    with running([compile_program("worker")]) as child:
        hear(child)
        assert refused_with_less(child.pid, NOBODY) == (
            f"  process {child.pid} runs as user 0 (real 0), reloader as {NOBODY}."
            " Run reloader as that user or as root\n"
        )
        answers(child)


def test_root_in_a_container_without_the_right_to_trace_is_told_how_to_get_it() -> None:
    remedy = "Give reloader the capability SYS_PTRACE (docker run --cap-add SYS_PTRACE)\n"
    with strangers(compile_program("worker")) as child:
        assert refused_with_less(child.pid, wrapper=LESS_CAPABLE) == (
            f"  process {child.pid} runs as user {NOBODY} (real {NOBODY}), reloader as 0."
            f" {remedy}"
        )
        answers(child)
    with running([compile_program("worker")]) as child:
        hear(child)
        assert refused_with_less(child.pid, wrapper=LESS_CAPABLE) == (
            f"  process {child.pid} may not be looked into: it is setuid, has rights that"
            f" reloader has not, or made itself undumpable. {remedy}"
        )
        answers(child)


def test_a_filter_that_only_root_may_read_is_refused_unless_it_is_the_daemons_own() -> None:
    with strangers(compile_program("sandboxed"), LOG, MEMFD_CREATE) as child:
        assert refused_with_less(child.pid, NOBODY) == (
            f"  process {child.pid} has a seccomp filter of its own, which could end it at a"
            " call that entering it needs, and whose rules only root may read. Run reloader as"
            " root, or start the program without it\n"
        )
        assert refused_with_less(child.pid, NOBODY, filtered=True) == ""
        answers(child)


@pytest.mark.parametrize(
    ("scope", "text", "remedy"),
    [
        (1, "tracing process {pid}", "Start the program with `reloader run`, run reloader as"),
        (2, "tracing process {pid}", "Run reloader as root, or `sudo sysctl kernel.yama"),
        (3, "tracing altogether", "Start the machine with another setting"),
    ],
)
def test_a_kernel_that_forbids_tracing_is_named_with_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scope: int, text: str, remedy: str
) -> None:
    setting = tmp_path / "ptrace_scope"  # not every kernel has the module
    setting.write_text(f"{scope}\n")
    monkeypatch.setattr(tracing, "YAMA", setting)
    monkeypatch.setattr(tracing, "may_trace_all", lambda: False)
    with running([compile_program("worker")]) as child:
        hear(child)
        said = refused(child.pid)
        where = text.format(pid=child.pid)
        assert f"the kernel forbids {where} (kernel.yama.ptrace_scope is {scope}). " in said
        assert remedy in said
        answers(child)


def test_a_machine_that_forbids_memory_files_is_named_with_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = tmp_path / "memfd_noexec"
    setting.write_text("2\n")
    monkeypatch.setattr(doctor, "NOEXEC", setting)
    with running([compile_program("worker")]) as child:
        hear(child)
        assert "memory files may not be executed here (vm.memfd_noexec is 2). `sudo" in refused(
            child.pid
        )
        answers(child)


def only_child(pid: int) -> int:
    """Return the pid of a process's child, as seen from here."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    until(lambda: bool(path.read_text().split()), "there is a child")
    return int(path.read_text().split()[0])


def in_pid_namespace(script: str) -> list[str]:
    return ["/usr/bin/unshare", "--pid", "--fork", "--mount-proc", "/bin/sh", "-c", script]


def test_memory_files_that_another_pid_namespace_forbids_are_named_at_attach() -> None:
    script = f"echo 2 >/proc/sys/vm/memfd_noexec && exec {compile_program('worker')}"
    with running(in_pid_namespace(script)) as child:
        assert hear(child).startswith("ready")
        inside = only_child(child.pid)
        with pytest.raises(AgentStartError) as error:
            attach(inside)
        assert str(error.value) == (
            f"process {inside}: the agent could not start: no memory file could be created;"
            " look at vm.memfd_noexec and seccomp filters. The system said: Permission denied"
            " (errno 13). Nothing was changed."
        )
        assert not [row.name for row in read_maps(inside) if "memfd:" in row.name]
        answers(child)
        os.kill(inside, signal.SIGKILL)


def test_a_process_in_another_pid_namespace_is_entered_and_entered_again() -> None:
    with running(in_pid_namespace(f"exec {compile_program('worker')}")) as child:
        assert hear(child).startswith("ready")
        inside = only_child(child.pid)
        for _ in range(2):
            process = attach(inside)
            assert process.resolve([b"getpid"]).all()
            with process.stop() as stop:
                assert stop.tids[0] == inside
            process.close()
        answers(child)
        os.kill(inside, signal.SIGKILL)


def test_a_process_in_another_mount_namespace_is_entered() -> None:
    with running(["/usr/bin/unshare", "--mount", compile_program("worker")]) as child:
        hear(child)
        (found,) = examine(child.pid)
        assert (found.level, found.subject) == ("warning", "mount-namespace")
        process = attach(child.pid)
        assert process.resolve([b"getpid"]).all()
        process.close()
        answers(child)


@pytest.mark.parametrize("with_proc", [True, False])
def test_a_process_in_a_chroot_is_entered_if_it_sees_proc(
    tmp_path: Path, *, with_proc: bool
) -> None:
    program = compile_program("worker")
    said = subprocess.run(
        ["/usr/bin/ldd", program], stdout=subprocess.PIPE, text=True, check=True
    )
    libraries = re.findall(r"(/\S+) \(", said.stdout)
    for path in [program, *map(Path, libraries), Path("/lib/x86_64-linux-gnu/libgcc_s.so.1")]:
        copy = tmp_path / str(path)[1:]
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    (tmp_path / "proc").mkdir()
    mount = f"mount -t proc none {tmp_path}/proc && " if with_proc else ""
    script = f"{mount}exec chroot {tmp_path} {program}"
    with running(["/usr/bin/unshare", "--mount", "/bin/sh", "-c", script]) as child:
        assert hear(child).startswith("ready")
        if with_proc:
            attach(child.pid).close()
        else:
            text = (
                f"process {child.pid} sees no /proc: it is in a chroot or container without one"
            )
            assert f"  {text}. Mount /proc there, or start" in refused(child.pid)
        answers(child)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gdb", ["/usr/bin/gdb", "-q", "-nx", "-p"]),
        ("strace", ["/usr/bin/strace", "-o", "/dev/null", "-p"]),
    ],
)
def test_a_process_that_a_debugger_traces_is_refused_by_the_debuggers_name(
    name: str, words: list[str]
) -> None:
    with running([compile_program("worker")]) as child:
        hear(child)
        with running([*words, str(child.pid)]) as tracer:
            until(lambda: bool(tracing.tracer_named(child.pid)), f"{name} traces it")
            said = refused(child.pid)
            assert f"is already traced by {name} (process {tracer.pid}). Let that" in said
            if name == "strace":
                tracer.terminate()
            else:  # killed before its prompt it would leave the program stopped
                say(tracer, "detach\nquit")
            tracer.wait(60)
        until(lambda: not tracing.tracer_named(child.pid), f"{name} has gone")
        answers(child)
        attach(child.pid).close()


def test_a_musl_program_is_refused() -> None:
    with running([compile_text(WAITS, "musl", cc="musl-gcc")]) as child:
        assert hear(child) == "r"
        assert "uses the musl C library (/lib/ld-musl-x86_64.so.1). Link it with" in refused(
            child.pid
        )
        say(child)
        assert child.wait(10) == 0


def test_a_sanitizers_program_is_refused() -> None:
    with running([compile_text(WAITS, "sanitized", "-fsanitize=address")]) as child:
        assert hear(child) == "r"
        text = "is built with AddressSanitizer, which refuses preloaded libraries. Build it"
        assert text in refused(child.pid)
        say(child)
        assert child.wait(10) == 0


THIRTY_TWO = """
.globl _start
_start: movl $4, %eax; movl $1, %ebx; movl $text, %ecx; movl $2, %edx; int $0x80
        movl $3, %eax; xorl %ebx, %ebx; movl $text, %ecx; movl $1, %edx; int $0x80
        movl $1, %eax; xorl %ebx, %ebx; int $0x80
.data
text: .ascii "r\\n"
"""


def test_a_thirty_two_bit_program_is_refused(tmp_path: Path) -> None:
    program, obj = tmp_path / "program", tmp_path / "program.o"
    subprocess.run(["/usr/bin/as", "--32", "-o", obj], input=THIRTY_TWO, text=True, check=True)
    subprocess.run(["/usr/bin/ld", "-m", "elf_i386", "-o", program, obj], check=True)
    with running([program]) as child:
        assert hear(child) == "r"
        said = refused(child.pid)
        assert (
            f"process {child.pid} is a program for i386. x86-64 is what reloader knows" in said
        )
        say(child)
        assert child.wait(10) == 0
