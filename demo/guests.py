"""The OCaml part: a server forgets nobody while its modules are replaced.

The program takes a closure of `Pages.home` once, when it starts, and keeps its guests in a
table that no interface mentions.
"""

import shutil
from http.client import HTTPConnection

from show import HERE, PATIENCE, Show, expect, playing, say

NEEDS = "ocamlfind"


def is_possible() -> bool:
    """Tell whether an OCaml compiler is here, and say so if not."""
    if shutil.which(NEEDS):
        return True
    say(f"\nThe OCaml part is left out: {NEEDS} is missing.")
    say("On Debian: apt-get install ocaml-nox ocaml-findlib ocaml-compiler-libs")
    return False


class Visit:
    """A browser."""

    def __init__(self, port: int) -> None:
        """Remember where the server listens."""
        self.port = port

    def get(self, name: str, expected: str) -> None:
        """Ask for a page, show it, and check it."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("GET", f"/{name}")
        page = connection.getresponse().read().decode()
        connection.close()
        say(f"    GET /{name}: {page}")
        expect("the page", page, expected)


def play(show: Show) -> None:
    """The story."""
    show.report("beside guests")
    visit = Visit(int(show.tick(r"listening on (\d+)")[1]))
    visit.get("ann", "hello ann, visit 1")
    visit.get("bob", "hello bob, visit 1")
    visit.get("ann", "hello ann, visit 2")

    show.save("1-pages.ml", "pages.ml")
    show.report("pages.o live: Pages.home")
    visit.get("ann", "WELCOME, ANN: visit 3")

    say("\nthe module that holds the guests: the hidden table is kept")
    show.save("2-store.ml", "store.ml")
    show.report("store.o live")
    show.report("kept: guests")
    show.report("new: today")
    visit.get("bob", "WELCOME, BOB: visit 2, 1 since the reload")
    visit.get("ann", "WELCOME, ANN: visit 4, 2 since the reload")

    say("\na type error: the build fails, the program goes on")
    show.save("3-pages-typo.ml", "pages.ml")
    show.report(r"Error: Th.* has type .?string")
    show.report("untouched")
    visit.get("ann", "WELCOME, ANN: visit 5, 3 since the reload")
    show.restore("1-pages.ml", "pages.ml")

    say("\na type that the interface hides: refused, with both declarations")
    show.save("4-store-type.ml", "store.ml")
    show.report("type guest changed")
    show.report("mutable visits : float")
    show.report("Nothing was changed")
    visit.get("bob", "WELCOME, BOB: visit 3, 4 since the reload")

    history = show.ask("history")
    outcomes = [row["outcome"] for row in history if row["outcome"] in {"live", "refused"}]
    expect("history", outcomes, ["refused", "live", "live"])
    show.end()


def run() -> None:
    """Play it in a folder of its own."""
    with playing(HERE / "ocaml" / "guests", HERE / "ocaml" / "edits", "*.ml") as show:
        play(show)
