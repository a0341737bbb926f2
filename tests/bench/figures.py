"""What is measured, what it should be, and how it is shown."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number beside its target."""

    name: str
    value: float
    unit: str
    target: float | None = None  # None: for information
    at_least: bool = False  # the target is a least value, not a greatest
    note: str = ""

    def met(self) -> bool | None:
        """Return whether the target is met, None if there is none."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile of some values, the nearest one that occurs."""
    ranked = sorted(values)
    return ranked[min(int(len(ranked) * percent / 100), len(ranked) - 1)]


def machine() -> dict[str, object]:
    """Return what the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as text, one a line."""
    verdicts = {True: "met", False: "NOT MET", None: ""}
    rows = [
        (
            figure.name,
            f"{figure.value:.3g} {figure.unit}",
            "" if figure.target is None
            else f"{'>=' if figure.at_least else '<='} {figure.target:g} {figure.unit}",
            verdicts[figure.met()],
            figure.note,
        )
        for figure in figures
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in rows
    )


def write(figures: Sequence[Figure], path: Path) -> None:
    """Write the figures and the machine as JSON."""
    rows = [asdict(figure) | {"met": figure.met()} for figure in figures]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine(), "figures": rows}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def progress(text: str) -> None:
    """Say what is being measured."""
    sys.stderr.write(f"{text}\n")
