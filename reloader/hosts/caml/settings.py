"""What a project may set for OCaml, the `[ocaml]` of reloader.toml."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OcamlConfig:
    """[ocaml]: for programs compiled by ocamlopt; see docs/ocaml.md."""

    compiler: str = ""  # the command that compiles units; empty: ocamlfind ocamlopt
    keep: tuple[str, ...] = ()  # values that go on in new versions: `Foo.table`
    reset: tuple[str, ...] = ()  # values that new versions make anew
    before: tuple[str, ...] = ()  # functions called with () before a swap, `Foo.pause`
    after: tuple[str, ...] = ()  # and after it
    limit_s: float = 10.0  # how long to wait for a point where units can be replaced
    initialiser_s: float = 5.0  # how long an initialiser may run; the program waits for it
