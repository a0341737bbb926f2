"""What a client may ask while a reload is under way: reads that neither wait nor change."""

from collections.abc import Iterable
from pathlib import Path

from reloader.errors.session import NotLoadedError, UnknownNameError, UnknownTargetError
from reloader.live.doctor import examine
from reloader.server.attended import Attended
from reloader.server.replies import (
    finding_answer,
    memory_answer,
    object_answer,
    owner_answer,
    row_answer,
)
from reloader.session.outcome import short
from reloader.session.owners import image_owner, owner_line
from reloader.session.session import Session
from reloader.session.source_names import meant
from reloader.wire.answers import (
    FindingAnswer,
    MemoryAnswer,
    ObjectAnswer,
    OwnerAnswer,
    ReloadAnswer,
    TargetAnswer,
)
from state.rows import Owner
from state.store import Store


class Questions:
    """The attended programs, found by what people call them, and what is known of them."""

    def __init__(self, store: Store, folder: Path) -> None:
        """Begin without a program."""
        self.store = store
        self._folder = folder
        self._programs: dict[int, Attended] = {}

    def targets(self) -> list[TargetAnswer]:
        """Return the programs under the daemon."""
        open_ones = [one for one in list(self._programs.values()) if one.session is not None]
        return [self._target_answer(attended) for attended in open_ones]

    def _target_answer(self, attended: Attended) -> TargetAnswer:
        session = self._session(attended)
        program = session.program
        return {
            "session": attended.number,
            "pid": session.process.pid,
            "processes": session.process.pids(),
            "name": program.image.path.rsplit("/", 1)[-1],
            "exe": program.image.path,
            "build_id": program.image.build_id,
            "generation": int(program.generation),
            "objects": len(program.objects),
            "held_size": sum(row.allocation.size for row in list(program.ledger.rows.values())),
            "began": attended.began,
            "notes": session.notes,
        }

    def objects(self, target: str | None) -> list[ObjectAnswer]:
        """Return what is watched and loaded."""
        return [object_answer(row) for row in self.store.query.objects(self._id(target))]

    def history(self, target: str | None, limit: int) -> list[ReloadAnswer]:
        """Return attempts, newest first; of the last program if none runs."""
        number, known = self._past(target)
        return [row_answer(number, row) for row in self.store.query.history(known, limit=limit)]

    def generations(self, target: str | None) -> list[ReloadAnswer]:
        """Return generations that became live, newest first, as `history` does."""
        number, known = self._past(target)
        return [row_answer(number, row) for row in self.store.query.generations(known)]

    def _past(self, target: str | None) -> tuple[int, int]:
        """Return the session, 0 for a program that has ended, and the state's id."""
        last = self.store.targets.last() if target is None and not self._programs else None
        if last is not None:
            return 0, last.id
        attended = self._find(target)
        return attended.number, self._session(attended).target

    def memory(self, target: str | None) -> MemoryAnswer:
        """Return the bytes held, per object and generation."""
        session = self._session(self._find(target))
        rows = self.store.query.memory(session.target)
        return memory_answer(rows, session.retiring.retained_size)

    def owner(self, what: str, target: str | None) -> list[OwnerAnswer]:
        """Return whom a name or an address belongs to, best first."""
        session = self._session(self._find(target))
        rows = self._owners(session, (what, *session.program.host.meant(what)))
        rows = rows or self._owners(session, meant(session.program, what))
        if rows:
            return [owner_answer(row, owner_line(session, row)) for row in rows]
        row = image_owner(session, what)
        if row is None:
            raise UnknownNameError(what, self.store.query.nearest_names(session.target, what))
        return [owner_answer(row, "")]

    def _owners(self, session: Session, names: Iterable[str]) -> list[Owner]:
        query = self.store.query
        return [row for name in names for row in query.owner(session.target, name)]

    def doctor(self, subject: str | None) -> list[FindingAnswer]:
        """Return what would stand in the way for a pid or a program."""
        what = subject or "/bin/true"
        number = what.isascii() and what.isdigit()
        return [finding_answer(row) for row in examine(int(what) if number else what)]

    def reached(self, generation: int | None, target: str | None) -> ReloadAnswer | None:
        """Return the attempt that `wait` waits for, or None if it is not decided yet."""
        attended = self._find(target)
        rows = self.history(target, 50)
        if rows and rows[0]["outcome"] == "prepared":
            return None
        if generation is None:
            busy = attended.builder is not None and attended.builder.busy
            return None if busy or not rows else rows[0]
        return next((row for row in rows if row["generation"] >= generation), None)

    def _find(self, target: str | None) -> Attended:
        programs = list(self._programs.values())
        if target is None and len(programs) == 1:
            return programs[0]
        answers = [self._target_answer(attended) for attended in programs]
        if target is not None:
            for attended, answer in zip(programs, answers, strict=True):
                if target in {str(answer["session"]), str(answer["pid"]), answer["name"]}:
                    return attended
        raise UnknownTargetError(target, [f"{a['name']} ({a['pid']})" for a in answers])

    def _id(self, target: str | None) -> int:
        return self._session(self._find(target)).target

    @staticmethod
    def _session(attended: Attended) -> Session:
        if attended.session is None:  # it was left just now
            raise UnknownTargetError(str(attended.number), [])
        return attended.session

    def _key(self, session: Session, name: str) -> tuple[str, str]:
        """Return the object that a user names by path, file name or `archive(member)`."""
        path, _, member = name.rstrip(")").partition("(")
        keys = session.known_objects()
        full = str(self._folder / path)
        found = [key for key in keys if key[1] == member and key[0] in {path, full}]
        found = found or [key for key in keys if name in {short(key[0]), key[1]}]
        found = found or [key for key in keys if f"{short(key[0])}({key[1]})" == name]
        found = found or session.program.host.objects_named(name)
        if len(found) != 1:
            shown = sorted({f"{short(p)}({m})" if m else short(p) for p, m in keys})
            near = [word for word in shown if name[:3] in word][:5]
            raise NotLoadedError(name, near)
        return found[0]
