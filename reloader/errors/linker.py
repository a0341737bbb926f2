"""Errors of `reloader link`: inputs, libraries, places, and checks that do not hold."""

from collections.abc import Sequence

from reloader.errors.base import UNTOUCHED, RefusedError, ReloaderError


class InputError(RefusedError):
    """A file that is to be linked is none that a linker takes."""

    code = "link-input"

    def __init__(self, path: str, why: str) -> None:
        self.path = path
        self.why = why
        super().__init__(f"{path}: {why}. {UNTOUCHED}")


class LibraryNotFoundError(RefusedError):
    """`-l NAME` names a library that is in none of the folders."""

    code = "library-not-found"

    def __init__(self, name: str, folders: Sequence[str]) -> None:
        self.name = name
        self.folders = tuple(folders)
        super().__init__(
            f"-l{name}: no lib{name}.so or lib{name}.a in {', '.join(folders)}. {UNTOUCHED} "
            "Name its folder with -L, or install the library's development package."
        )


class LibraryLoadError(RefusedError):
    """The dynamic loader of the host refused a shared library."""

    code = "library-load"

    def __init__(self, path: str, why: str) -> None:
        self.path = path
        self.why = why
        super().__init__(f"{path}: cannot be loaded: {why}. {UNTOUCHED}")


class EntryMissingError(RefusedError):
    """Nothing that was linked defines the function to call."""

    code = "entry-missing"

    def __init__(self, name: str, nearest: Sequence[str] = ()) -> None:
        self.name = name
        near = f" Did you mean {', '.join(nearest)}?" if nearest else ""
        super().__init__(
            f"{name}: no linked object defines it, so there is nothing to call.{near} "
            f"{UNTOUCHED} Name another function with --entry, or link only, with --noexec."
        )


class AliasError(RefusedError):
    """`--alias A=B` where nothing defines B."""

    code = "alias"

    def __init__(self, name: str, target: str) -> None:
        self.name = name
        self.target = target
        super().__init__(f"--alias {name}={target}: {target} is defined nowhere. {UNTOUCHED}")


class NoSuchSectionError(RefusedError):
    """`--map-section` names a file or section that is not linked."""

    code = "no-such-section"

    def __init__(self, file: str, section: str, known: Sequence[str]) -> None:
        self.file = file
        self.section = section
        have = ", ".join(known) or "none"
        super().__init__(
            f"--map-section {file},{section}: no such section is linked; there is: {have}. "
            f"{UNTOUCHED}"
        )


class OnlyUnexecutedError(RefusedError):
    """An option that pins addresses, which a running host does not allow."""

    code = "only-noexec"

    def __init__(self, option: str) -> None:
        self.option = option
        super().__init__(
            f"{option} pins addresses that a process may not have free. {UNTOUCHED} "
            "Use it with --noexec."
        )


class ExpressionError(ReloaderError):
    """A check expression cannot be read or evaluated; the text says what and where."""

    code = "expression"


class CheckFailedError(RefusedError):
    """Some check expressions do not hold; carries all of them."""

    code = "check-failed"

    def __init__(self, file: str, failures: Sequence[str], count: int) -> None:
        self.file = file
        self.failures = tuple(failures)
        self.count = count
        lines = "\n".join(f"  {failure}" for failure in failures)
        super().__init__(f"{file}: {len(failures)} of {count} checks failed:\n{lines}")


class NoChecksError(RefusedError):
    """A check file without a single check: most likely the wrong file or prefix."""

    code = "no-checks"

    def __init__(self, file: str, prefix: str) -> None:
        self.file = file
        self.prefix = prefix
        super().__init__(
            f"{file}: no line begins with `# {prefix}:`. Name the prefix with --check-name."
        )
