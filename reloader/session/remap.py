"""Re-mapping: code and constants of a live object get a second placement.

The snapshot that is live is linked once more at fresh addresses, the slots flip to it, and the
old memory waits for its proof like that of any older version. Variables stay where they are.
It is what compacts an arena full of holes, moves code away from where something else is to lie,
and shows that a caller keeps no address it should not.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from reloader.elf.sources import source_line
from reloader.errors.base import ReloaderError
from reloader.errors.redirect import NotRedirectableError, Refusal
from reloader.errors.session import NotLoadedError
from reloader.link.passes.anew import Anew
from reloader.live.ending import noticing_the_end
from reloader.live.linking import link_transaction
from reloader.live.program import Key
from reloader.session.outcome import Outcome

if TYPE_CHECKING:
    from reloader.session.session import Session


def remap(session: "Session", keys: Sequence[Key]) -> Outcome:
    """Give the code and constants of live objects another place.

    Functions of the executable whose callers cannot be sent away (too short for a jump, and
    called from where no call can be changed) stay; the outcome's notes name them.

    Args:
        session: The program.
        keys: Live objects.

    Raises:
        NotLoadedError: One of them is not live (any more).
    """
    began = time.monotonic()
    for path, member in keys:
        if (path, member) not in session.program.objects:
            raise NotLoadedError(f"{path}({member})" if member else path, [])
    objects = [session.program.objects[key].file for key in keys]
    stays = refused(session, Anew(frozenset(keys)))
    names = frozenset(refusal.name.encode() for refusal in stays)
    anew = Anew(frozenset(keys), names)
    outcome = session.reload_objects(objects, began, "remap", anew=anew)
    if outcome.state == "live":
        outcome.notes += [f"{refusal} - it stays where it is" for refusal in stays]
    return outcome


def refused(session: "Session", anew: Anew) -> Sequence[Refusal]:
    """Return the functions whose callers cannot be sent to another place.

    Linking takes memory and slots, which are given back: nothing in the process changes.
    """
    objects = [session.program.objects[key].file for key in sorted(anew.objects)]
    try:
        with ExitStack() as undo, noticing_the_end(session.process, lambda: "re-mapping"):
            link_transaction(session.program, objects, frozenset(), source_line, undo, anew)
    except NotRedirectableError as error:
        return error.refusals
    except ReloaderError:
        return ()  # the attempt itself will tell
    return ()
