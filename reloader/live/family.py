"""Forked children that run the same program, which reloads do not reach yet.

A child shares the slot table and sees code that is written later, but entry jumps and variables
are its own. Until it is a member of the target, the report has to say that it goes on as it is.
"""

from pathlib import Path


def children(pid: int) -> list[int]:
    """Return the processes below one, of any depth, that run its executable."""
    try:
        program = Path(f"/proc/{pid}/exe").stat()
    except OSError:
        return []
    found: list[int] = []
    todo = [pid]
    while todo:
        for child in direct_children(todo.pop()):
            todo.append(child)
            try:
                other = Path(f"/proc/{child}/exe").stat()
            except OSError:  # it has ended, or is a zombie
                continue
            if (other.st_dev, other.st_ino) == (program.st_dev, program.st_ino):
                found.append(child)
    return sorted(found)


def direct_children(pid: int) -> list[int]:
    """Return the children of all threads of a process."""
    found: list[int] = []
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += [int(word) for word in (thread / "children").read_text().split()]
    except OSError:  # it, or the thread, has ended
        return found
    return found
