"""Which objects of a transaction are linked in part: those of which only a little changed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from reloader.elf.object import ObjectFile
from reloader.ids import I64
from reloader.link.cut import Cut
from reloader.link.excerpt import excerpt
from reloader.live.host import Plain
from reloader.live.objects import LiveObject
from reloader.live.program import Key, Program


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that stand for objects in one transaction."""

    cuts: dict[Key, Cut] = field(default_factory=dict[Key, Cut])

    @classmethod
    def of(cls, program: Program, objects: Sequence[ObjectFile]) -> "Parts":
        """Return the parts of those objects that need not be linked as a whole."""
        if program.hooks is not None or not isinstance(program.host, Plain):
            return WHOLE  # they are shown whole objects
        found = {file.key: _cut(program, file) for file in objects}
        return cls({key: cut for key, cut in found.items() if cut is not None})

    def files(self, objects: Sequence[ObjectFile]) -> list[ObjectFile]:
        """Return what is linked: parts, and objects that have none."""
        cuts = self.cuts
        return [cuts[file.key].file if file.key in cuts else file for file in objects]

    def live(self, program: Program, files: Sequence[ObjectFile]) -> list[LiveObject | None]:
        """Return what is live of what is linked: of a part, the same part."""
        cuts, known = self.cuts, program.live_versions(files)
        return [
            cuts[file.key].live if file.key in cuts else live
            for file, live in zip(files, known, strict=True)
        ]

    def whole(self, versions: Sequence[LiveObject]) -> list[LiveObject]:
        """Return what the objects will be, given what is linked of them will be."""
        cuts = self.cuts
        return [cuts[v.file.key].widened(v) if v.file.key in cuts else v for v in versions]

    def symbols(self, file: ObjectFile, rows: I64) -> I64:
        """Return the indices of some symbols of what is linked in the object's own table."""
        cut = self.cuts.get(file.key)
        return rows if cut is None else cut.symbols[rows]


def _cut(program: Program, file: ObjectFile) -> Cut | None:
    live = program.objects.get(file.key)
    return excerpt(live, file, program.arch) if live is not None else None


WHOLE = Parts()
