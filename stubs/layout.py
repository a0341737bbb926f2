"""agent.h's structs and numbers as numpy dtypes; a test compiles agent.h and compares."""

from pathlib import Path
from typing import Final

import numpy as np

MAGIC: Final = 0x31524544414F4C52
VERSION: Final = 1
PAGE: Final = 4096
CONTROL_SIZE: Final = 1 << 20
TEXT_OFFSET: Final = 64 << 10
TEXT_SIZE: Final = 448 << 10
REPLY_OFFSET: Final = 512 << 10
REPLY_SIZE: Final = 512 << 10
SLOT_COUNT: Final = 1 << 18
STUB_SIZE: Final = 16
RING_SIZE: Final = 16
THREAD_MOST: Final = 4096
THREAD_UNIT: Final = 8  # bytes of thread-local room that one bit stands for
SLOT_UNWIND: Final = 0  # the pointer to the unwind directory
SLOT_FIRST: Final = 16  # the first that may be a function's

# rows of CONTROL's `regions`; the first three equal reloader.ids.Region
CODE: Final = 0
RODATA: Final = 1
DATA: Final = 2
SLOTS: Final = 3
CONTROL_REGION: Final = 4
REGION_COUNT: Final = 5

OP_PING: Final = 0
OP_RESOLVE: Final = 1
OP_CALL: Final = 2
OP_DISCARD: Final = 3
OP_SYNC_CORE: Final = 4
OP_CLOSE: Final = 5
OP_PTRACER: Final = 6
OP_HOOK_UNWIND: Final = 7
OP_TRACK_WRITES: Final = 8
OP_THREAD_WRITE: Final = 9
OP_THREAD_OFFSETS: Final = 10
OP_THREAD_ATEXITS: Final = 11
OP_CALL_CATCHING: Final = 12

STATE_STARTING: Final = 0
STATE_IDLE: Final = 1
STATE_BUSY: Final = 2

STATUS_OK: Final = 0
STATUS_NO_MEMFD: Final = 1
STATUS_NO_SPACE: Final = 2
STATUS_NO_MAP: Final = 3
STATUS_NO_THREAD: Final = 4
STATUS_TWICE: Final = 5
STATUS_FILE_LIMIT: Final = 6

REGION: Final = np.dtype([("addr", "<u8"), ("size", "<u8"), ("file_offset", "<u8")])
COMMAND: Final = np.dtype(
    [("op", "<u4"), ("error", "<u4"), ("args", "<u8", 8), ("result", "<u8")]
)
CONTROL: Final = np.dtype(
    [
        ("magic", "<u8"), ("version", "<u4"), ("header_size", "<u4"), ("target_pid", "<u4"),
        ("daemon_pid", "<u4"), ("daemon_start", "<u8"), ("holder_pid", "<u4"),
        ("holder_fd", "<u4"), ("generation", "<u8"), ("file_size", "<u8"), ("exe_start", "<u8"),
        ("exe_end", "<u8"), ("agent_base", "<u8"), ("regions", REGION, REGION_COUNT),
        ("agent_tid", "<u4"), ("agent_state", "<u4"), ("doorbell", "<u4"), ("done_bell", "<u4"),
        ("ring_head", "<u4"), ("ring_tail", "<u4"), ("ring", COMMAND, RING_SIZE),
        ("thread_offset", "<u8"), ("thread_size", "<u8"),
        ("thread_taken", "<u8", THREAD_MOST // THREAD_UNIT // 64),
    ]
)  # fmt: skip
PARAMS: Final = np.dtype(
    [
        ("code_size", "<u8"), ("rodata_size", "<u8"), ("data_size", "<u8"),
        ("control_addr", "<u8"), ("file_size", "<u8"), ("memfd", "<i4"), ("status", "<i4"),
        ("error", "<i4"), ("injected", "<u4"),
    ]
)  # fmt: skip
HELLO: Final = np.dtype(
    [
        ("magic", "<u8"), ("version", "<u4"), ("pid", "<u4"), ("control_addr", "<u8"),
        ("file_size", "<u8"), ("status", "<i4"), ("error", "<i4"),
    ]
)  # fmt: skip
# a row of the unwind directory, which begins with its uint64 row count
UNWIND_ENTRY: Final = np.dtype([("start", "<u8"), ("end", "<u8"), ("eh_frame_hdr_addr", "<u8")])
STRUCTS: Final = {
    "reloader_region": REGION,
    "reloader_command": COMMAND,
    "reloader_control": CONTROL,
    "reloader_params": PARAMS,
    "reloader_hello": HELLO,
    "reloader_unwind_entry": UNWIND_ENTRY,
}

HOLDER_FD: Final = 3  # where the holder keeps the memfd

_FOLDER: Final = Path(__file__).resolve().parent / "agent"


def agent_path() -> Path:
    """Return the compiled agent inside this package."""
    return _FOLDER / "agent.so"


def late_agent_paths() -> tuple[Path, ...]:
    """Return the agents for a process that runs already, the one to try first at the start."""
    return _FOLDER / "agent-late.so", _FOLDER / "agent-bare.so"


def holder_path() -> Path:
    """Return the compiled program that holds the memfd."""
    return _FOLDER / "reloader-holder"


def host_path() -> Path:
    """Return the program around objects that have no executable."""
    return _FOLDER / "reloader-host"
