"""docs/refusals.md lists every reason for which an object is refused, with what to do."""

import inspect
import pkgutil
import re
from importlib import import_module

from reloader import errors
from reloader.errors.base import RefusedError
from reloader.errors.objects import ObjectError
from tests.support.sources import ROOT

# refusals of a command line, a configuration, a file event or a process, not of an object
OTHERS = {"base", "daemon", "linker", "live", "plugins", "session", "watch"}
OF_OBJECTS = {  # those of the modules above that are about an object after all
    "ArenaFullError", "NotLoadedError", "StillReferredToError", "UnknownObjectError",
    "UnreadableFileError", "UntraceableError",
}  # fmt: skip
ROW = re.compile(r"^\| `([a-z-]+)` \| (.+?) \| (.+?) \|$", re.MULTILINE)


def refusals() -> dict[str, type[RefusedError]]:
    """Return the error types about objects, by their code."""
    found: dict[str, type[RefusedError]] = {}
    for module in pkgutil.iter_modules(errors.__path__):
        held = import_module(f"reloader.errors.{module.name}")
        for name, kind in vars(held).items():
            if not (inspect.isclass(kind) and issubclass(kind, RefusedError)):
                continue
            of_object = module.name not in OTHERS or name in OF_OBJECTS
            if of_object and kind.__module__ == held.__name__:
                found.setdefault(kind.code, kind)
    return found


def test_every_refusal_of_an_object_is_documented_with_its_remedy() -> None:
    rows = ROW.findall((ROOT / "docs" / "refusals.md").read_text("utf-8"))
    codes = [code for code, _, _ in rows]
    assert sorted(codes) == sorted(refusals()), "docs/refusals.md: a row a code, no other rows"
    for code, what, remedy in rows:
        kind = refusals()[code]
        assert what == (inspect.getdoc(kind) or "").splitlines()[0]
        assert remedy.endswith(".")
        if issubclass(kind, ObjectError):
            assert remedy == kind.remedy
