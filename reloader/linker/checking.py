"""Check files: which lines are checks, and whether all of them hold."""

from pathlib import Path

from reloader.errors.linker import CheckFailedError, InputError, NoChecksError
from reloader.linker.expressions import Facts, check


def checks_in(text: str, name: str) -> list[str]:
    """Return the checks of a file: lines that begin with `# NAME:`.

    A check that ends with a backslash goes on in the next line, if that is one as well.
    """
    prefix = f"# {name}:"
    found: list[str] = []
    pending = ""
    for line in text.splitlines():
        stripped = line.lstrip()
        if stripped.startswith(prefix):
            pending += stripped[len(prefix) :]
        if not pending:
            continue
        if pending.endswith("\\"):
            pending = pending[:-1]
        else:
            found.append(pending)
            pending = ""
    return [*found, pending] if pending else found


def run_checks(path: Path, name: str, facts: Facts) -> int:
    """Check every expression of a file; return how many there are.

    Raises:
        InputError: It cannot be read.
        NoChecksError: It has none.
        CheckFailedError: Some do not hold; carries all of them.
    """
    try:
        text = path.read_text("utf-8", "replace")
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from error
    checks = checks_in(text, name)
    if not checks:
        raise NoChecksError(str(path), name)
    failures = [why for why in (check(one, facts) for one in checks) if why]
    if failures:
        raise CheckFailedError(str(path), failures, len(checks))
    return len(checks)
