"""What watching finds: files that are complete, with their content."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FinishedFile:
    """A complete file, read after its event; the disk may change again without harm."""

    path: Path  # absolute, as watched (links not resolved)
    data: bytes
    digest: str  # hex blake2b-128 of `data`
    mtime_ns: int
    event_ns: int  # time.monotonic_ns() when its event was read


Files = tuple[FinishedFile, ...]
