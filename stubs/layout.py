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
CAML_TEXT_OFFSET: Final = 768 << 10
CAML_TEXT_SIZE: Final = 256 << 10
SLOT_COUNT: Final = 1 << 18
STUB_SIZE: Final = 16
RING_SIZE: Final = 16
CRASHES: Final = 4  # that are written down
CRASH_WORDS: Final = 32
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
OP_OCAML_ATTACH: Final = 13
OP_OCAML_RUN: Final = 14
OP_OCAML_RETIRE: Final = 15
OP_OCAML_HOLD: Final = 16
OP_JIT_REGISTER: Final = 17
OP_SIGNAL_HANDLERS: Final = 18

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
CRASH: Final = np.dtype(
    [
        ("complete", "<u4"), ("signal", "<i4"), ("code", "<i4"), ("pid", "<u4"),
        ("tid", "<u4"), ("word_count", "<u4"), ("fault_addr", "<u8"), ("pc", "<u8"),
        ("sp", "<u8"), ("words", "<u8", CRASH_WORDS),
    ]
)  # fmt: skip
CONTROL: Final = np.dtype(
    [
        ("magic", "<u8"), ("version", "<u4"), ("header_size", "<u4"), ("target_pid", "<u4"),
        ("daemon_pid", "<u4"), ("daemon_start", "<u8"), ("holder_pid", "<u4"),
        ("holder_fd", "<u4"), ("generation", "<u8"), ("file_size", "<u8"), ("exe_start", "<u8"),
        ("exe_end", "<u8"), ("agent_base", "<u8"), ("regions", REGION, REGION_COUNT),
        ("agent_tid", "<u4"), ("agent_state", "<u4"), ("doorbell", "<u4"), ("done_bell", "<u4"),
        ("ring_head", "<u4"), ("ring_tail", "<u4"), ("ring", COMMAND, RING_SIZE),
        ("thread_offset", "<u8"), ("thread_size", "<u8"),
        ("thread_taken", "<u8", THREAD_MOST // THREAD_UNIT // 64), ("enter_addr", "<u8"),
        ("own_addr", "<u8"), ("addressee", "<u4"), ("first_pid", "<u4"),
        ("caml_token", "<u8"), ("caml_phase", "<u4"), ("caml_reached_by", "<u4"),
        ("caml_wait_us", "<u8"), ("caml_inside_us", "<u8"),
        ("crash_count", "<u4"), ("crash_seen", "<u4"), ("crashes", CRASH, CRASHES),
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
OWN_FIELDS: Final = ("progress", "forks", "forks_wanted")
OWN: Final = np.dtype([(name, "<u8") for name in OWN_FIELDS])
STRUCTS: Final = {
    "reloader_region": REGION,
    "reloader_command": COMMAND,
    "reloader_crash": CRASH,
    "reloader_control": CONTROL,
    "reloader_own": OWN,
    "reloader_params": PARAMS,
    "reloader_hello": HELLO,
    "reloader_unwind_entry": UNWIND_ENTRY,
}

# what the agent wants to know of an OCaml runtime, in the order of ocaml.h
CAML_SYMBOLS: Final = (
    b"caml_modify", b"caml_callback_exn", b"caml_record_backtraces", b"caml_format_exception",
    b"caml_stat_free", b"caml_failwith", b"caml_debuginfo_extract", b"caml_debuginfo_location",
    b"caml_debuginfo_next", b"caml_register_code_fragment", b"caml_find_code_fragment_by_num",
    b"caml_remove_code_fragment", b"caml_unregister_frametable", b"caml_do_roots",
    b"caml_scan_roots_hook", b"caml_finish_major_cycle", b"caml_enter_blocking_section_hook",
    b"caml_leave_blocking_section_hook", b"caml_globals_inited", b"Caml_state",
    b"caml_register_frametable", b"caml_register_dyn_global", b"caml_empty_minor_heap",
    b"caml_record_signal", b"caml_pending_signals", b"caml_sigmask_hook",
    b"caml_channel_mutex_lock", b"caml_page_table_add", b"caml_page_table_remove",
    b"caml_page_table_lookup", b"caml_next_frame_descriptor", b"caml_state",
    b"caml_register_frametables", b"caml_register_dyn_globals", b"caml_empty_minor_heaps_once",
    b"caml_try_run_on_all_domains", b"caml_init_domain_self", b"caml_acquire_domain_lock",
    b"caml_release_domain_lock", b"caml_domain_external_interrupt_hook",
    b"caml_scan_global_roots", b"caml_scan_stack", b"caml_get_frame_descrs",
    b"caml_find_frame_descr", b"caml_callback_res", b"caml_c_thread_register",
    b"caml_c_thread_unregister", b"caml_leave_blocking_section",
    b"caml_enter_blocking_section_no_pending",
)  # fmt: skip

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
