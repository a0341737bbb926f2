"""Outcomes and rows of the state as answers of the protocol."""

from reloader.live.tracing import Finding
from reloader.session.outcome import Outcome
from reloader.session.retiring import Pinned
from reloader.watching.build import BuildResult
from reloader.wire.answers import (
    BuildAnswer,
    CrashAnswer,
    FindingAnswer,
    HolderAnswer,
    MemoryAnswer,
    ObjectAnswer,
    OwnerAnswer,
    ReloadAnswer,
)
from state.crashes import CrashRow
from state.rows import GenerationRow, MemoryRow, ObjectRow, Owner


def reload_answer(session: int, outcome: Outcome, kind: str, began: float) -> ReloadAnswer:
    """Return what came of an attempt."""
    return {
        "session": session,
        "generation": outcome.generation,
        "kind": kind,
        "outcome": outcome.state,
        "began": began,
        "objects": outcome.objects,
        "functions": outcome.functions,
        "ms_total": outcome.total_ms,
        "stop_us": outcome.stop_us,
        "timings": outcome.steps_ms,
        "error_code": outcome.code or None,
        "error": outcome.error or None,
        "notes": outcome.notes,
    }


def row_answer(session: int, row: GenerationRow) -> ReloadAnswer:
    """Return a row of the history."""
    return {
        "session": session,
        "generation": row.generation,
        "kind": row.kind,
        "outcome": row.state,
        "began": row.began,
        "objects": [object_name(item["path"], item["member"]) for item in row.objects],
        "functions": row.functions,
        "ms_total": row.ms_total,
        "stop_us": row.stop_us,
        "timings": row.timings,
        "error_code": row.error_code,
        "error": row.error,
        "notes": row.notes,
    }


def object_name(path: str, member: str) -> str:
    """Return an object as shown to people."""
    return f"{path}({member})" if member else path


def crash_answer(row: CrashRow) -> CrashAnswer:
    """Return a crash of the program."""
    return {
        "pid": row.pid,
        "signal": row.signal,
        "generation": row.generation,
        "function": row.function,
        "object": object_name(row.path, row.member),
        "line": row.line,
        "text": row.text,
    }


def object_answer(row: ObjectRow) -> ObjectAnswer:
    """Return a watched object."""
    return {
        "name": row.name,
        "path": row.path,
        "member": row.member,
        "digest": row.digest,
        "source": row.source,
        "generation": row.generation,
        "baseline": row.baseline,
        "note": row.note,
    }


def memory_answer(rows: list[MemoryRow], retained_size: int) -> MemoryAnswer:
    """Return the bytes that are held."""
    return {
        "rows": [
            {
                "object": row.object,
                "generation": row.generation,
                "region": row.region,
                "live_size": row.live_size,
                "superseded_size": row.superseded_size,
                "freed_size": row.freed_size,
            }
            for row in rows
        ],
        "live_size": sum(row.live_size for row in rows),
        "superseded_size": sum(row.superseded_size for row in rows),
        "retained_size": retained_size,
        "freed_size": sum(row.freed_size for row in rows),
    }


def owner_answer(row: Owner, line: str) -> OwnerAnswer:
    """Return whom a name or an address belongs to."""
    return {
        "name": row.name,
        "kind": row.kind,
        "object": row.object,
        "path": row.path,
        "member": row.member,
        "source": row.source,
        "line": line or None,
        "section": row.section,
        "offset": row.offset,
        "addr": row.addr,
        "size": row.size,
        "generation": row.generation,
        "slot": row.slot,
        "stub_addr": row.stub_addr,
        "live": row.live,
        "distance": row.distance,
    }


def holder_answers(pinned: Pinned) -> list[HolderAnswer]:
    """Return what holds one piece of superseded memory."""
    row = pinned.held
    name = object_name(*row.object) if row.object[0] else "the transaction's tables"
    found = [(holder.kind, holder.where) for holder in pinned.holders]
    found = found or [("waiting", "nothing holds it; it is freed at the next look")]
    return [
        {
            "object": name,
            "generation": row.generation,
            "size": row.allocation.size,
            "kind": kind,
            "where": where,
        }
        for kind, where in found
    ]


def finding_answer(finding: Finding) -> FindingAnswer:
    """Return a finding of the doctor."""
    return {
        "level": finding.level,
        "subject": finding.subject,
        "text": finding.text,
        "remedy": finding.remedy,
    }


def build_answer(result: BuildResult) -> BuildAnswer:
    """Return how a build ended."""
    return {
        "state": "done" if result.status == 0 else "failed",
        "command": result.command,
        "seconds": result.seconds,
        "status": result.status,
        "output": result.output if result.status else "",
    }
