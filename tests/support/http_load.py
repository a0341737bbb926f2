"""Load for the HTTP server under test: kept-alive connections, each one visitor, each checked.

A request has failed when the connection breaks, the status is not 200, or the visitor is no
longer the same one with one view more: the server's memory was lost.
"""

import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

PATIENCE = 20.0  # seconds that an answer may take on a busy machine
PATHS = ("/", "/stats", "/slow")


@dataclass
class LoadResult:
    """What came of a load.

    Attributes:
        requests: How many were answered as they should be.
        failures: One text for each that was not.
        latencies: Seconds of each request.
        titles: How often each page title was seen.
    """

    requests: int = 0
    failures: list[str] = field(default_factory=list[str])
    latencies: list[float] = field(default_factory=list[float], repr=False)
    titles: Counter[str] = field(default_factory=Counter[str])

    def percentile(self, percent: float) -> float:
        """Return a percentile of the latencies in seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]

    def add(self, other: "LoadResult") -> None:
        """Add another connection's result."""
        self.requests += other.requests
        self.failures += other.failures
        self.latencies += other.latencies
        self.titles += other.titles


class Visitor:
    """One kept-alive connection."""

    def __init__(self, port: int) -> None:
        """Connect; the server gives the visitor's token with its first answer."""
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.stream = self.socket.makefile("rb")
        self.token = ""
        self.views = 0

    def get(self, path: str) -> tuple[int, str]:
        """Send a request; return the status and the page."""
        cookie = f"Cookie: token={self.token}\r\n" if self.token else ""
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: t\r\n{cookie}\r\n".encode())
        status = int(self.stream.readline().split()[1])
        headers: dict[str, str] = {}
        while line := self.stream.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        page = self.stream.read(int(headers["content-length"])).decode()
        self.token = headers.get("set-cookie", "token=" + self.token).removeprefix("token=")
        return status, page

    def visit(self, path: str) -> str:
        """Get a page and check that the server remembers; return its title.

        Raises:
            ValueError: It is not the page that should have come.
        """
        token, views = self.token, self.views
        status, page = self.get(path)
        title, seen = re.search(r"<title>(.*)</title>", page), re.search(r"views (\d+)", page)
        if status != 200 or title is None or seen is None:
            message = f"{path}: status {status}, {page[:200]!r}"
            raise ValueError(message)
        self.views = int(seen.group(1))
        if self.views != views + 1 or self.token != (token or self.token):
            message = (
                f"{path}: visitor {token} had {views} views, now {self.token} {self.views}"
            )
            raise ValueError(message)
        return title.group(1)

    def close(self) -> None:
        """Hang up."""
        self.stream.close()
        self.socket.close()


class Load:
    """Visitors in threads, from `with` to `stop` or the end of the block."""

    def __init__(self, port: int, visitors: int = 4, paths: Sequence[str] = PATHS) -> None:
        """Prepare so many visitors of a port; each goes through the paths over and over."""
        self.port = port
        self.paths = paths
        self.result = LoadResult()
        self._stop = threading.Event()
        self._answered = threading.Condition()
        self._threads = [threading.Thread(target=self._run) for _ in range(visitors)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def until(self, title: str, times: int = 1) -> None:
        """Wait until a title has been seen so often.

        Raises:
            TimeoutError: It has not, in `PATIENCE` seconds or before a request failed.
        """
        with self._answered:
            if not self._answered.wait_for(lambda: self._is_over(title, times), PATIENCE) or (
                self.result.failures
            ):
                message = f"{title!r} was not seen {times} times: {self.result}"
                raise TimeoutError(message)

    def stop(self) -> LoadResult:
        """Let every visitor finish its request and hang up; return what came of all."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return self.result

    def _is_over(self, title: str, times: int) -> bool:
        return self.result.titles[title] >= times or bool(self.result.failures)

    def _run(self) -> None:
        visitor = Visitor(self.port)
        try:
            turn = 0
            while not self._stop.is_set():
                self._one(visitor, self.paths[turn % len(self.paths)])
                turn += 1
        except (OSError, ValueError, LookupError) as error:
            with self._answered:
                self.result.failures.append(repr(error))
                self._answered.notify_all()
        finally:
            visitor.close()

    def _one(self, visitor: Visitor, path: str) -> None:
        began = time.perf_counter()
        title = visitor.visit(path)
        took = time.perf_counter() - began
        with self._answered:
            self.result.add(LoadResult(1, [], [took], Counter([title])))
            self._answered.notify_all()
