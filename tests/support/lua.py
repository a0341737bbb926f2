"""The Lua interpreter as a live program: its own sources and makefile, an endless script.

The script evaluates each line of its input and prints the results, so that a test sees
behaviour without waiting.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from reloader.live.inject import adopt
from reloader.live.retire import RetirePolicy
from reloader.session.outcome import Outcome
from reloader.session.session import Session
from state.store import Store
from tests.support.live import prepare_spawn
from tests.support.programs import build_lua
from tests.support.talk import Talking

PATIENT: Final = RetirePolicy(max_stop_ms=5000)  # a loaded machine must not decide a test

SCRIPT: Final = r"""
io.stdout:setvbuf("line")
local lines, kept = 0, {}
for i = 1, 1000 do kept[i] = i * 2 end
kept.name = "kept"
local function accumulator()
  local total = 0
  return function(n) total = total + n; return total end
end
local add = accumulator()
local generate = coroutine.wrap(function()
  local n = 0
  while true do n = n + 1; coroutine.yield(n) end
end)

-- state that only grows if nothing of it was lost
function state() return lines, add(lines), generate(), #kept, kept[500], kept.name end

-- many of the interpreter's functions, with an answer that no edit changes
function work()
  local sum, words = 0, {}
  for i = 1, 300 do words[i] = ("w%03d"):format((i * 7919) % 1000) end
  table.sort(words, function(a, b) return a < b end)
  for word in table.concat(words, " "):gmatch("%a%d+") do sum = (sum * 31 + #word
      + word:byte(3)) % 1000003 end
  local object = setmetatable({}, {__index = function(_, key) return key .. "!" end})
  sum = sum + #object.absent + select(2, ("a,b,c"):gsub(",", ";"))
  local ok, message = pcall(error, {code = 40})
  sum = sum + (ok and 0 or message.code)
  for round = 1, 20 do local big = {}; for i = 1, 50 do big["k" .. i] = {i} end end
  collectgarbage()
  return sum
end

-- busy, without reading anything, until math.abs behaves anew
function spin()
  print("spinning")
  local n = 0
  while math.abs(-3) == 3 do n = n + 1; kept[n % 1000 + 1] = kept[n % 1000 + 1] end
  return n > 0, math.abs(-3)
end

print("ready")
for line in io.lines() do
  lines = lines + 1
  print(assert(load("return " .. line))())
end
"""


class Lua(Talking):
    """A private copy of a built tree, and at most one process of its interpreter."""

    def __init__(self, folder: Path, variant: str = "pie") -> None:
        built = build_lua(variant)
        shutil.copytree(built.folder.parent, folder / "lua5.4", symlinks=True)
        self.folder = folder
        self.source = folder / "lua5.4" / "src"
        self.cflags = {
            "pie": "",
            "nopie": "-fno-pie",
            "sections": "-ffunction-sections -fdata-sections",
        }[variant]
        self.ldflags = {"pie": "", "nopie": "-no-pie", "sections": "-Wl,--gc-sections"}[variant]
        (folder / "loop.lua").write_text(SCRIPT)

    def edit(self, name: str, before: str, after: str) -> None:
        """Replace a text that occurs once in a source file."""
        path = self.source / name
        text = path.read_text()
        assert text.count(before) == 1, (name, before, text.count(before))
        path.write_text(text.replace(before, after))

    def make(self, *words: str) -> list[Path]:
        """Run Lua's own makefile, with more words if wanted; return the objects it wrote."""
        before = self._stamps()
        command = [
            "make", "-j2", "lua", "SYSCFLAGS=-DLUA_USE_LINUX", "SYSLIBS=-Wl,-E -ldl",
            f"MYCFLAGS=-g {self.cflags}", f"MYLDFLAGS={self.ldflags} -Wl,-Map=lua.map", *words,
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=self.source, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        after = self._stamps()
        return [path for path in after if after[path] != before.get(path)]

    def _stamps(self) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in sorted(self.source.glob("*.o"))}

    def watched(self) -> list[tuple[str, bytes]]:
        """Return every object as a session takes it."""
        return [(str(path), path.read_bytes()) for path in self._stamps()]

    def start(self, argv: list[str], env: dict[str, str] | None = None, *fds: int) -> int:
        """Start the interpreter on the script; return its pid."""
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            pass_fds=fds,
        )
        return self.process.pid

    def command(self) -> list[str]:
        """Return what starts the interpreter."""
        return [str(self.source / "lua"), str(self.folder / "loop.lua")]

    def ask(self, expression: str) -> str:
        """Return the values of an expression, with tabs between."""
        self.say(expression)
        return self.line()


def reload(session: Session, objects: list[Path]) -> Outcome:
    """Reload what a build wrote, as one transaction."""
    return session.reload_files([str(path) for path in objects])


@contextmanager
def running(lua: Lua, way: str) -> Generator[Session]:
    """Start the interpreter and open a session: `attach` beside it, `agent` started with it."""
    session = _with_agent(lua) if way == "agent" else _beside(lua)
    session.retiring.retirer.policy = PATIENT
    try:
        yield session
    finally:
        session.close()


def _beside(lua: Lua) -> Session:
    pid = lua.start(lua.command())
    assert lua.line() == "ready"
    return Session.attach(pid, root=lua.folder, watch=[str(lua.source / "*.o")])


def _with_agent(lua: Lua) -> Session:
    argv, env, theirs, ours = prepare_spawn(lua.command(), os.environ)
    try:
        pid = lua.start(argv, env, theirs)
    finally:
        os.close(theirs)
    adopted = adopt(pid, socket.socket(fileno=ours))
    session = Session.open(
        adopted.process, Store.open(lua.folder / ".reloader"), lua.watched(), how="run"
    )
    session.owns_store = True
    adopted.release()
    assert lua.line() == "ready"
    return session
