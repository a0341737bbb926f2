"""The Lua interpreter, edited while it interprets: its makefile builds, its state survives."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from reloader.session.session import Session
from tests.support.lua import Lua, reload, running

pytestmark = [pytest.mark.live, pytest.mark.slow]


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of one source file, and what shows it."""

    file: str
    before: str
    after: str
    function: str  # must be named as changed
    ask: str
    old: str
    new: str


ABS = "if (n < 0) n = (lua_Integer)(0u - (lua_Unsigned)n);"
COUNTED = "{ static int calls = 100; n = n < 0 ? -n + ++calls : n; }"
ALWAYS = "work(), 1 + 1, ('x'):rep(3), kept == nil"

EDITS = (
    # a static function that only a luaL_Reg table names
    Edit("lmathlib.c", ABS, "if (n < 0) n = 1000 - n;", "math_abs",
         "math.abs(-7)", "7", "1007"),
    # a new static variable, and the next version keeps it
    Edit("lmathlib.c", "if (n < 0) n = 1000 - n;", COUNTED, "math_abs",
         "math.abs(-7)", "1007", "108"),
    Edit("lmathlib.c", "++calls", "(calls += 10)", "math_abs", "math.abs(-7)", "109", "119"),
    # a new constant string, shared with other strings of the object
    Edit("lmathlib.c", '"integer" :', '"whole number" :', "math_type",
         "math.type(3)", "integer", "whole number"),
    # a floating constant
    Edit("lmathlib.c", "l_mathop(180.0) / PI", "l_mathop(200.0) / PI", "math_deg",
         "math.floor(math.deg(math.pi) + 0.5)", "180", "200"),
    # a table of relocated constants grows: whoever opens the library anew sees it
    Edit("lmathlib.c", '{"abs",   math_abs},', '{"abs",   math_abs}, {"twice", math_twice},',
         "luaopen_math",
         "opened().twice and opened().twice(21)", "nil", "42"),
    Edit("lstrlib.c", "p[i] = s[l - i - 1];", "p[i] = s[l - i - 1] + 1;", "str_reverse",
         "('cba'):reverse()", "abc", "bcd"),
    # a switch in a static function, with callers that recurse
    Edit("lstrlib.c", "case 'd' : res = isdigit(c); break;",
         "case 'd' : res = isdigit(c) || c == '#'; break;",
         "match_class|matchbracketclass|singlematch|match", "('a#1b'):match('%d+')", "1", "#1"),
    Edit("lstrlib.c", "        case 'd': case 'i':\n", "        case 'Z': "
         'lua_pushliteral(L, "zed"); '
         "luaL_addvalue(&b); break;\n        case 'd': case 'i':\n", "str_format",
         "select(2, pcall(string.format, '%Z', 1)):sub(1, 7)", "invalid", "zed"),
    # the table's hot paths
    Edit("ltable.c", "  if (l_castS2U(key) - 1u < t->alimit)  /* 'key' in [1, t->alimit]? */\n",
         "  if (key == 424242) key = 2;\n  if (l_castS2U(key) - 1u < t->alimit)\n",
         "luaH_getint",
         "({10, 20, 30})[424242]", "nil", "20"),
    Edit("ltable.c", "  unsigned int limit = t->alimit;\n  if (limit > 0 && isempty",
         "  unsigned int limit = t->alimit;\n  if (limit == 7) return 77;\n"
         "  if (limit > 0 && isempty",
         "luaH_getn", "#{1, 2, 3, 4, 5, 6, 7}", "7", "77"),
    Edit("lvm.c", "    lua_Integer q = m / n;", "    lua_Integer q = m == 4242 ? 1 : m / n;",
         "luaV_idiv",
         "inside('local a, b = 4242, 2 return a // b')", "2121", "1"),
)  # fmt: skip

# the loaded text runs in the frame of the interpreter's loop that reads lines; a call from C
# gets a frame of its own
HELPERS = (
    "rawset(_G, 'inside', function(text) return select(2, pcall(load(text))) end) and 1",
    "rawset(_G, 'opened', package.loadlib('', 'luaopen_math')) and 1",
)


@pytest.fixture
def lua(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lua]:
    made = Lua(tmp_path, request.param)
    yield made
    made.stop()


@pytest.fixture
def pie(tmp_path: Path) -> Iterator[Lua]:
    made = Lua(tmp_path)
    yield made
    made.stop()


class Watcher:
    """Asks for the state again and again; every answer must follow from the one before."""

    def __init__(self, lua: Lua) -> None:
        self.lua = lua
        self.generated = self.total = 0
        for line in HELPERS:
            assert lua.ask(line) == "1"
        self.answer = lua.ask("work()")

    def look(self) -> None:
        lines, total, generated, *rest = self.lua.ask("state()").split("\t")
        self.generated += 1
        self.total += int(lines)
        assert (int(generated), int(total)) == (self.generated, self.total)
        assert rest == ["1000", "1000", "kept"]
        assert self.lua.ask("work()") == self.answer


def apply(lua: Lua, session: Session, edit: Edit) -> None:
    assert lua.ask(edit.ask) == edit.old
    lua.edit(edit.file, edit.before, edit.after)
    if "math_twice" in edit.after:
        lua.edit(
            edit.file, "static const luaL_Reg mathlib[] = {",
            "static int math_twice (lua_State *L) {\n"
            "  lua_pushinteger(L, 2 * luaL_checkinteger(L, 1));\n"
            "  return 1;\n}\n\nstatic const luaL_Reg mathlib[] = {",
        )  # fmt: skip
    objects = lua.make()
    assert [path.name for path in objects] == [edit.file.replace(".c", ".o")]
    outcome = reload(session, objects)
    assert (outcome.state, outcome.error) == ("live", "")
    assert set(edit.function.split("|")) & set(outcome.functions), outcome.functions
    assert lua.ask(edit.ask) == edit.new


@pytest.mark.parametrize(
    ("lua", "way"),
    [("pie", "attach"), ("nopie", "agent"), ("sections", "attach")],
    indirect=["lua"],
)
def test_a_dozen_edits_in_a_row_and_the_script_goes_on(lua: Lua, way: str) -> None:
    with running(lua, way) as session:
        watcher = Watcher(lua)
        watcher.look()
        freed = 0
        for edit in EDITS:
            apply(lua, session, edit)
            watcher.look()
            freed += session.retiring.attempt().freed_size
            watcher.look()
        assert freed > 0
    watcher.look()
    assert lua.stop() == 0


UNARY = "setivalue(s2v(ra), intop(-, 0, ib));"
NEGATE = "inside('local a = 7 return -a')"


def test_the_interpreters_own_loop_is_said_to_be_active_and_is_new_from_its_next_call(
    pie: Lua,
) -> None:
    with running(pie, "attach") as session:
        watcher = Watcher(pie)
        assert pie.ask(NEGATE) == "-7"
        pie.edit("lvm.c", UNARY, UNARY.replace("0, ib", "1000, ib"))
        outcome = reload(session, pie.make())
        assert (outcome.state, outcome.error) == ("live", "")
        assert "luaV_execute" in outcome.functions
        assert "luaV_execute" in outcome.active
        assert any(
            "luaV_execute" in note and "running right now" in note for note in outcome.notes
        )
        assert pie.ask(NEGATE) == "993"
        watcher.look()
        for number in (2000, 3000, 4000):
            pie.edit("lvm.c", f"{number - 1000}, ib", f"{number}, ib")
            outcome = reload(session, pie.make())
            assert (outcome.state, outcome.stop_us) == ("live", 0)
            assert pie.ask(NEGATE) == str(number - 7)
            watcher.look()
            session.retiring.attempt()
            watcher.look()


SHORT = "  Node *n = hashstr(t, key);"


@pytest.mark.parametrize("way", ["attach", "agent"])
def test_a_busy_script_is_reloaded_under_way(pie: Lua, way: str) -> None:
    with running(pie, way) as session:
        watcher = Watcher(pie)
        pie.say("spin()")
        assert pie.line() == "spinning"
        for number in range(1, 4):  # what the loop runs all the time
            pie.edit(
                "ltable.c",
                SHORT,
                f"  if (t->alimit == {0xFFFFFF0 + number}) return &absentkey;\n{SHORT}",
            )
            outcome = reload(session, pie.make())
            assert (outcome.state, outcome.error) == ("live", "")
            assert "luaH_getshortstr" in outcome.functions
            session.retiring.attempt()
        pie.edit("lvm.c", UNARY, UNARY.replace("0, ib", "1000, ib"))
        outcome = reload(session, pie.make())
        assert (outcome.state, "luaV_execute" in outcome.active) == ("live", True)
        pie.edit("lmathlib.c", ABS, "if (n < 0) n = 1000 - n;")
        assert reload(session, pie.make()).state == "live"
        assert pie.line() == "true\t1003"
        assert pie.ask(NEGATE) == "993"
        watcher.look()
        session.retiring.attempt()
        watcher.look()
    assert pie.stop() == 0


def test_an_edited_header_reloads_the_objects_of_one_build_together(pie: Lua) -> None:
    with running(pie, "attach") as session:
        watcher = Watcher(pie)
        question = "(pcall(math.floor, '10.5'))"
        assert pie.ask(question) == "true"
        before = "#define cvt2num(o)\tttisstring(o)"
        pie.edit("lvm.h", before, "#define cvt2num(o)\t(ttisstring(o) && svalue(o)[0] != '1')")
        objects = pie.make()
        assert len(objects) > 5
        outcome = reload(session, objects)
        assert (outcome.state, outcome.error) == ("live", "")
        assert pie.ask(question) == "false"
        watcher.look()


def test_the_whole_interpreter_is_replaced_by_one_built_otherwise_and_comes_back(
    pie: Lua,
) -> None:
    with running(pie, "attach") as session:
        watcher = Watcher(pie)
        kept = dict(pie.watched())
        objects = pie.make("-B", "MYCFLAGS=-g -O0")
        assert len(objects) == len(kept)
        outcome = reload(session, objects)
        assert (outcome.state, outcome.error) == ("live", "")
        assert len(outcome.functions) > 700
        watcher.look()
        session.retiring.attempt()
        watcher.look()
        for name, content in kept.items():
            Path(name).write_bytes(content)
        outcome = reload(session, objects)
        assert (outcome.state, outcome.error) == ("live", "")
        watcher.look()
        assert session.retiring.attempt().freed_size > 0
        watcher.look()
    assert pie.stop() == 0
