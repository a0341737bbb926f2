"""The digest that names an object's bytes, made beside the work on them.

Hashing thirty megabytes takes as long as linking them, and nothing on the road to new code
needs the result. It is begun at once on another core, which hashlib allows, and waited for by
whoever asks. A small object is hashed when asked.
"""

from hashlib import blake2b
from threading import Thread

from reloader.ids import U8

_LARGE = 256 << 10  # bytes from which a thread is worth its start


class Fingerprint:
    """The hex blake2b-128 of some bytes that nobody changes."""

    __slots__ = ("_data", "_text", "_thread")

    def __init__(self, data: U8) -> None:
        """Begin."""
        self._data, self._text = data, ""
        self._thread: Thread | None = None
        if len(data) >= _LARGE:
            self._thread = Thread(target=self._make, name="fingerprint", daemon=True)
            self._thread.start()

    def _make(self) -> None:
        self._text = blake2b(self._data.data, digest_size=16).hexdigest()

    def hex(self) -> str:
        """Return it, when it is done."""
        if not self._text:
            if self._thread is not None:
                self._thread.join()
                self._thread = None
            if not self._text:  # small, or the thread was left behind by a fork
                self._make()
        return self._text
