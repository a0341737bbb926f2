"""Objects that are refused alone, and live with others that were refused or compiled again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reloader.live.inputs import pull

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reloader.elf.object import ObjectFile
    from reloader.live.host import Companions
    from reloader.session.outcome import Outcome
    from reloader.session.session import Session


def reload_with(
    session: Session,
    more: Companions,
    objects: Sequence[ObjectFile],
    event_time: float,
    reinit: frozenset[str],
) -> Outcome:
    """Reload objects with those without which they are refused."""
    kept = [file for file in objects if file.key not in more.without]
    together = pull(session.program, [*kept, *more.files], session.shelf)
    outcome = session.reload_objects(together, event_time, "load", reinit)
    outcome.notes += more.notes
    return outcome
