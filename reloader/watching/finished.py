"""What watching finds: files that are complete, with their content."""

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FinishedFile:
    """A complete file, read after its event; the disk may change again without harm."""

    path: Path  # absolute, as watched (links not resolved)
    data: bytes
    mtime_ns: int
    event_ns: int  # time.monotonic_ns() when its event was read

    @property
    def digest(self) -> str:
        """Hex blake2b-128 of the content; made when asked, since a reload does not need it."""
        return digest_of(self.data)


def digest_of(data: bytes) -> str:
    """Return the name of some bytes: hex blake2b-128."""
    return blake2b(data, digest_size=16).hexdigest()


Files = tuple[FinishedFile, ...]
