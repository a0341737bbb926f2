"""Answers as text for people: tables, one-line reports, owners.

On a terminal tables are rich's; anywhere else plain aligned columns that `awk` can read.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from reloader.commands.names import readable
from reloader.wire.answers import EventKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reloader.wire.answers import (
        BuildAnswer,
        CheckAnswer,
        FindingAnswer,
        HolderAnswer,
        MemoryAnswer,
        ObjectAnswer,
        OwnerAnswer,
        ReloadAnswer,
        StatusAnswer,
        TargetAnswer,
    )
    from reloader.wire.protocol import Event

_NAMES_SHOWN: Final = 5
_NONE: Final = "-"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: str = "") -> str:
    """Return rows under their column names.

    Args:
        columns: Their names.
        rows: Texts, as many as columns.
        right: Names of right-aligned columns, with spaces between.
    """
    texts = [[str(cell) for cell in row] for row in rows]
    readable("\n".join(cell for row in texts for cell in row))  # all names at once
    cells = [[local(cell) for cell in row] for row in texts]
    aligned = [name in right.split() for name in columns]
    if sys.stdout and sys.stdout.isatty():
        return _rich_table(columns, cells, aligned)
    lines = [[name.upper() for name in columns], *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, aligned, strict=True)
        ).rstrip()
        for line in lines
    )


def status(answer: StatusAnswer) -> str:
    """Return `reloader status`."""
    daemon = answer["daemon"]
    if daemon is None:
        return "no daemon is running"
    busy = f", busy with {daemon['busy']}" if daemon["busy"] else ""
    head = f"daemon {daemon['pid']} for {daemon['folder']}{busy}"
    if not answer["targets"]:
        return f"{head}\nno program is under it"
    columns = ("session", "pid", "program", "generation", "objects", "memory", "since")
    rows = [
        (
            *(str(t["session"]), str(t["pid"]), t["name"], str(t["generation"])),
            *(str(t["objects"]), size(t["held_size"]), when(t["began"])),
        )
        for t in answer["targets"]
    ]
    notes = [line for t in answer["targets"] for line in (*family(t), *t["notes"])]
    notes = [f"  {note}" for note in notes]
    numbers = "session pid generation objects memory"
    return "\n".join([head, table(columns, rows, right=numbers), *notes])


def family(answer: TargetAnswer) -> list[str]:
    """Return a sentence on the processes of a program, none if it has one."""
    others = [str(pid) for pid in answer["processes"] if pid != answer["pid"]]
    if not others:
        return []
    which = f"{', '.join(others[:8])}{', …' if len(others) > 8 else ''}"
    return [f"{answer['name']}: {1 + len(others)} processes; with it: {which}"]


def target(answer: TargetAnswer) -> str:
    """Return one program, as `attach` and `detach` report it."""
    notes = "".join(f"\n  {note}" for note in answer["notes"])
    objects = count(answer["objects"], "object")
    return f"{answer['name']} (pid {answer['pid']}), {objects} watched{notes}"


_OUTCOMES: Final = {
    ("load", "unchanged"): "unchanged: the code that runs is the same",
    ("rollback", "live"): "rolled back",
    ("rollback", "unchanged"): "unchanged: that is what runs",
    ("replay", "live"): "replayed from the last run",
    ("remap", "live"): "moved",
    ("unload", "live"): "unloaded",
    ("unload", "unchanged"): "unchanged: what was linked is what runs",
}


def reload(answer: ReloadAnswer) -> str:
    """Return one attempt in a line: `hud.o live: draw, score (2 functions) in 3.1 ms`."""
    names = shorten([_base(name) for name in answer["objects"]])
    line = f"{names} {_OUTCOMES.get((answer['kind'], answer['outcome']), answer['outcome'])}"
    if answer["outcome"] == "live":
        functions = answer["functions"]
        if functions:
            line += f": {shorten(functions)} ({count(len(functions), 'function')})"
        if answer["ms_total"] is not None:
            line += f" in {answer['ms_total']:.1f} ms"
        if answer["stop_us"]:
            line += f", stopped for {answer['stop_us'] / 1000:.2f} ms"
    if answer["error"]:
        line += f": {answer['error']}"
    return "\n".join([line.lstrip(), *(f"  {note}" for note in answer["notes"])])


def local(text: str) -> str:
    """Return a text as it is said here: paths from the working folder, names of the source."""
    return readable(text.replace(f"{Path.cwd()}/", ""))


def history(rows: Sequence[ReloadAnswer]) -> str:
    """Return `reloader history` and `reloader generations`."""
    if not rows:
        return "nothing was reloaded yet"
    columns = (
        "generation",
        "when",
        "outcome",
        "objects",
        "functions",
        "ms",
        "stop_us",
        "error",
    )
    return table(
        columns,
        [
            (
                *(str(r["generation"]), when(r["began"]), r["outcome"]),
                shorten([_base(name) for name in r["objects"]]),
                shorten(r["functions"]) or _NONE,
                _NONE if r["ms_total"] is None else f"{r['ms_total']:.1f}",
                _NONE if r["stop_us"] is None else f"{r['stop_us']:.0f}",
                (r["error"] or _NONE).splitlines()[0],
            )
            for r in rows
        ],
        right="generation ms stop_us",
    )


def objects(rows: Sequence[ObjectAnswer]) -> str:
    """Return `reloader objects`."""
    if not rows:
        return "no objects are watched"
    columns = ("object", "generation", "baseline", "digest", "source")
    lines = [
        (
            *(r["name"], str(r["generation"]), r["baseline"] or _NONE),
            *((r["digest"] or "not loaded")[:12], r["source"] or _NONE),
        )
        for r in rows
    ]
    notes = [f"  {r['name']}: {r['note']}" for r in rows if r["note"]]
    return "\n".join([table(columns, lines, right="generation"), *notes])


def memory(answer: MemoryAnswer) -> str:
    """Return `reloader memory`."""
    total = (
        f"{size(answer['live_size'])} live, {size(answer['superseded_size'])} superseded and"
        f" not yet free ({size(answer['retained_size'])} of it kept for rollbacks),"
        f" {size(answer['freed_size'])} freed"
    )
    columns = ("object", "generation", "region", "live", "superseded", "freed")
    rows = [
        (
            *(r["object"] or _NONE, str(r["generation"]), r["region"]),
            *(size(r["live_size"]), size(r["superseded_size"]), size(r["freed_size"])),
        )
        for r in answer["rows"]
    ]
    right = "generation live superseded freed"
    return "\n".join([total, table(columns, rows, right=right)] if rows else [total])


def owners(rows: Sequence[OwnerAnswer]) -> str:
    """Return `reloader owner`: one paragraph an owner, best first."""
    return "\n\n".join(_owner(row) for row in rows)


def holders(rows: Sequence[HolderAnswer]) -> str:
    """Return `reloader why`."""
    if not rows:
        return "nothing holds an old generation of it"
    columns = ("object", "generation", "size", "kind", "where")
    return table(
        columns,
        [
            (_base(r["object"]), str(r["generation"]), size(r["size"]), r["kind"], r["where"])
            for r in rows
        ],
        right="generation size",
    )


def check(rows: Sequence[CheckAnswer]) -> str:
    """Return `reloader check`."""
    lines: list[str] = []
    for row in rows:
        if row["ok"]:
            changed = shorten(row["functions"]) or "nothing"
            lines.append(f"{row['object']}: would load; changes {changed}")
        else:
            lines.append(f"{row['object']}: would be refused")
        lines += [f"  {text}" for text in (*row["reasons"], *row["notes"])]
    return "\n".join(lines)


def findings(rows: Sequence[FindingAnswer]) -> str:
    """Return `reloader doctor`."""
    lines: list[str] = []
    for row in rows:
        lines.append(f"{row['level']:<7}  {row['subject']}: {row['text']}")
        if row["remedy"]:
            lines.append(f"{'':<7}  -> {row['remedy']}")
    return "\n".join(lines) or "nothing stands in the way"


def event(event: Event) -> str | None:
    """Return an event as `run` shows it, or None for one that people need not see."""
    data = event.data
    match event.kind:
        case EventKind.RELOAD:
            text = reload(cast("ReloadAnswer", data))
        case EventKind.ATTACHED:
            text = f"beside {target(cast('TargetAnswer', data))}"
        case EventKind.BUILD:
            text = _build(cast("BuildAnswer", data))
        case EventKind.WARNING | EventKind.CRASHED:
            text = str(data.get("text", ""))
        case _:
            return None
    return f"[reloader] {text}" if text else None


def size(value: int) -> str:
    """Return bytes as people read them."""
    for unit, limit in (("B", 1 << 10), ("KiB", 1 << 20), ("MiB", 1 << 30)):
        if value < limit:
            scaled = value / (limit >> 10)
            return f"{value} B" if unit == "B" else f"{scaled:.1f} {unit}"
    return f"{value / (1 << 30):.1f} GiB"


def when(seconds: float) -> str:
    """Return a local time of day, with the date if it was another day."""
    moment, today = time.localtime(seconds), time.localtime()
    same_day = moment[:3] == today[:3]
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M", moment)


def count(number: int, word: str) -> str:
    """Return `1 function`, `2 functions`."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def shorten(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    shown = ", ".join(names[:_NAMES_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


def _owner(row: OwnerAnswer) -> str:
    title = row["name"] or row["kind"]
    if row["distance"]:
        title += f"+{row['distance']:#x}"
    offset = f"+{row['offset']:#x}" if row["offset"] is not None else ""
    held = "superseded, memory still held" if row["generation"] else "superseded, as linked"
    state = "live" if row["live"] else held
    fields = {
        "kind": row["kind"],
        "object": row["object"],
        "section": f"{row['section']}{offset}" if row["section"] else None,
        "source": row["line"] or row["source"],
        "generation": f"{row['generation']} ({state})",
        "address": None if row["addr"] is None else f"{row['addr']:#x}",
        "size": str(row["size"]),
        "stub": None if row["stub_addr"] is None else f"{row['stub_addr']:#x}",
        "slot": None if row["slot"] is None else str(row["slot"]),
    }
    lines = [f"  {name:<10}  {value}" for name, value in fields.items() if value]
    return "\n".join([title, *lines])


def _build(data: BuildAnswer) -> str:
    seconds = f" after {data['seconds']:.1f} s" if "seconds" in data else ""
    if data["state"] == "failed":
        output = data.get("output", "").rstrip()
        lead = f"build failed{seconds} (status {data.get('status', '?')}): {data['command']}"
        return f"{lead}\n{output}\n[reloader] the program is untouched"
    return "" if data["state"] == "done" else f"build {data['state']}: {data['command']}"


def _base(name: str) -> str:
    """Return the last part of `folder/liba.a(member.o)` as `liba.a(member.o)`."""
    path, bracket, member = name.partition("(")
    return Path(path).name + bracket + member


def _rich_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]
) -> str:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - costs more than most commands
    from rich.console import Console  # noqa: PLC0415 - as above
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    shown = Table(box=SIMPLE_HEAD)
    for name, to_right in zip(columns, right, strict=True):
        shown.add_column(name, justify="right" if to_right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))  # Text: names may hold `[brackets]`
    console = Console()
    with console.capture() as captured:
        console.print(shown)
    return captured.get().rstrip("\n")
