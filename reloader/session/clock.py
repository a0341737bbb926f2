"""How long each step of a reload takes, and where tests stop it between two steps."""

import time
from collections.abc import Callable

from reloader.session.outcome import Outcome


class Clock:
    """Writes the time of each step into an outcome."""

    def __init__(self, outcome: Outcome, began: float, before: Callable[[str], None]) -> None:
        self._outcome = outcome
        self._began = began  # monotonic time of the file event
        self._before = before
        self._name = "wait"
        self._since = began

    def step(self, name: str) -> None:
        """Begin a step."""
        self._end()
        self._name = name
        self._before(name)

    @property
    def current(self) -> str:
        """The step that is under way."""
        return self._name

    def finish(self) -> Outcome:
        """End the last step; return the outcome with its total."""
        self._end()
        self._outcome.total_ms = (time.monotonic() - self._began) * 1e3
        return self._outcome

    def _end(self) -> None:
        now = time.monotonic()
        steps = self._outcome.steps_ms
        steps[self._name] = steps.get(self._name, 0.0) + (now - self._since) * 1e3
        self._since = now
