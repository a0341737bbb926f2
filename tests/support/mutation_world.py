"""A generated program with everything whose layout can change, described to be edited.

It has structs in structs and behind pointers, a union, an enum, bit-fields, function pointers,
a thread-local variable and C++ classes with virtual functions, with random names and members.
The sources are written from the description.
"""

from dataclasses import dataclass, field
from random import Random
from typing import Final

TYPES: Final = (
    "char", "unsigned char", "short", "unsigned short", "int", "unsigned", "long",
    "unsigned long", "float", "double", "char *",
)  # fmt: skip
WORDS: Final = (
    "amber", "birch", "cedar", "delta", "ember", "flint", "grove", "heron", "iris", "jade",
    "kelp", "lotus", "maple", "north", "ocean", "pearl", "quartz", "raven", "sable", "tulip",
)  # fmt: skip
Fields = list[tuple[str, str]]  # (type, name)


@dataclass
class World:
    """What the program is made of."""

    inner: Fields
    outer: Fields
    union: Fields
    local: Fields  # of the thread-local variable
    colors: list[tuple[str, int]]
    bits: list[tuple[str, int]]
    parameters: list[str]
    result: str
    call: str  # parameter of a function pointer in a struct
    table: int  # elements
    base: list[str]  # virtual functions
    derived: list[str]
    members: Fields  # of the base class
    parents: str = "Base"
    # harmless things
    prelude: str = ""  # at the top of the header
    more_header: str = ""
    before: str = ""  # before the functions of state.c
    scratch: str = "int"  # type of a local variable
    scratch_name: str = "scratch"
    private: str = "int a; int b;"  # of a struct inside of a function
    constant: int = 7
    methods: str = ""  # not virtual
    swapped: bool = False  # order of functions
    qualifier: str = ""  # of parameters
    overrides: list[str] = field(default_factory=list[str])

    @classmethod
    def of(cls, random: Random) -> "World":
        """Return a random one."""
        names = random.sample(WORDS, len(WORDS))

        def fields(count: int) -> Fields:
            return [(random.choice(TYPES), names.pop()) for _ in range(count)]

        return cls(
            inner=fields(3), outer=fields(3), union=fields(2), local=fields(2),
            colors=[(name.upper(), at) for at, (_, name) in enumerate(fields(3))],
            bits=[("low", random.randint(2, 6)), ("high", random.randint(2, 6))],
            parameters=random.choices(("int", "long", "double", "char *", "short"), k=2),
            result=random.choice(("int", "long", "double")),
            call=random.choice(("int", "long", "double")),
            table=random.randint(3, 9),
            base=["area", "draw", "name"], derived=["turn", "grow"], members=fields(2),
        )  # fmt: skip

    def header(self) -> str:
        """Return what both C objects include."""
        bits = " ".join(f"unsigned {name} : {width};" for name, width in self.bits)
        colors = ", ".join(f"{name} = {value}" for name, value in self.colors)
        parameters = ", ".join(f"{self.qualifier}{kind}" for kind in self.parameters)
        return f"""{self.prelude}
struct inner {{ {members(self.inner)} }};
union either {{ {members(self.union)} }};
enum color {{ {colors} }};
struct outer {{
    {members(self.outer)}
    struct inner in; struct inner *link; union either u; enum color c; {bits}
    int (*call)(struct inner *, {self.call});
}};
extern struct outer shared;
{self.result} work(struct outer *o, {parameters});
{self.more_header}
void touch(void *data, unsigned long size);
"""

    def state(self) -> str:
        """Return the object that has the data."""
        named = ", ".join(
            f"{self.qualifier}{kind} p{at}" for at, kind in enumerate(self.parameters)
        )
        work = f"""{self.result} work(struct outer *o, {named})
{{
    {self.scratch} {self.scratch_name} = {self.constant};
    struct mine {{ {self.private} }} own = {{0}};
    touch(&{self.scratch_name}, sizeof {self.scratch_name});
    touch(&own, sizeof own);
    touch(o, sizeof *o);
    touch(&table, sizeof table);
    touch(&head, sizeof head);
    touch(&local, sizeof local);
    return 0;
}}
"""
        other = "int other(void) { return head != 0; }\n"
        functions = [other, work] if self.swapped else [work, other]
        return f"""#include "shared.h"
struct outer shared;
static struct inner *head;
static struct outer table[{self.table}];
static _Thread_local struct {{ {members(self.local)} }} local;
{self.before}
{"".join(functions)}"""

    def user(self) -> str:
        """Return the object that calls it."""
        arguments = ", ".join("0" for _ in self.parameters)
        return f"""#include "shared.h"
int answer(int n)
{{
    touch(&shared.in, sizeof shared.in);
    return (int)work(&shared, {arguments}) + n;
}}
"""

    def shapes(self) -> str:
        """Return the C++ object."""
        base = "".join(f"    virtual int {name}(int n) {{ return n; }}\n" for name in self.base)
        derived = "".join(
            f"    virtual int {name}() {{ return 1; }}\n" for name in self.derived
        )
        derived += "".join(
            f"    int {name}(int n) override {{ return -n; }}\n" for name in self.overrides
        )
        return f"""extern "C" void touch(void *data, unsigned long size);
struct Other {{ virtual int elsewhere() {{ return 9; }} long weight; }};
struct Base {{
{base}    {members(self.members)}
    {self.methods}
}};
struct Derived : {self.parents} {{
{derived}    int depth;
}};
Base *shape;
extern "C" int shapes(int n)
{{
    if (!shape) shape = new Derived;
    touch(shape, sizeof *shape);
    return {self.constant} + n;
}}
"""


def members(fields: Fields) -> str:
    """Return the members of a struct."""
    return " ".join(f"{kind} {name};" for kind, name in fields)
