/* What the agent inside the target and the daemon outside share.
 *
 * One memfd named "reloader" backs everything. Its first bytes are `struct reloader_control`; the same
 * structs stand in stubs/layout.py as numpy dtypes, and a test proves them equal. Whatever the daemon
 * writes here may be half a command when it is killed: a command counts only once `ring_head` passes it.
 */
#ifndef RELOADER_AGENT_H
#define RELOADER_AGENT_H

#include <stdint.h>

#define RELOADER_MAGIC 0x31524544414f4c52ull /* "RLOADER1" as bytes */
#define RELOADER_VERSION 1u

#define RELOADER_PAGE 4096ull
#define RELOADER_CONTROL_SIZE (1ull << 20)
#define RELOADER_TEXT_OFFSET (64ull << 10)  /* packed names and lists of a command */
#define RELOADER_TEXT_SIZE (448ull << 10)
#define RELOADER_REPLY_OFFSET (512ull << 10) /* its answers, eight bytes each */
#define RELOADER_REPLY_SIZE (512ull << 10)
#define RELOADER_CAML_TEXT_OFFSET (768ull << 10) /* of an OCaml command: what an exception said */
#define RELOADER_CAML_TEXT_SIZE (256ull << 10)
#define RELOADER_SLOT_COUNT (1ull << 18)
#define RELOADER_STUB_SIZE 16ull
#define RELOADER_RING_SIZE 16u
#define RELOADER_CRASHES 4u
#define RELOADER_CRASH_WORDS 32u

/* Thread-local room: at most so much, or pthread_create on small stacks would fail; taken in units. */
#define RELOADER_THREAD_MOST 4096ull
#define RELOADER_THREAD_UNIT 8ull

/* Slot 0 is the pointer to the unwind directory; the first sixteen are never a function's. */
#define RELOADER_SLOT_UNWIND 0
#define RELOADER_SLOT_FIRST 16

enum reloader_region_id {
  RELOADER_CODE = 0, /* same numbers as reloader.ids.Region where both have the region */
  RELOADER_RODATA = 1,
  RELOADER_DATA = 2,
  RELOADER_SLOTS = 3,
  RELOADER_CONTROL = 4,
  RELOADER_REGION_COUNT = 5,
};

enum reloader_op {
  RELOADER_PING = 0,
  RELOADER_RESOLVE = 1,    /* args: names, text bytes -> one address a name in the reply area */
  RELOADER_CALL = 2,       /* args: function, a0..a5 -> result */
  RELOADER_DISCARD = 3,    /* args: pairs; text holds (addr, size) pairs: MADV_DONTNEED each; symbol files of code there go, too */
  RELOADER_SYNC_CORE = 4,  /* membarrier */
  RELOADER_CLOSE = 5,      /* args: descriptor */
  RELOADER_PTRACER = 6,    /* args: pid that may trace us (yama) */
  RELOADER_HOOK_UNWIND = 7, /* patch modules that were loaded since the last time */
  RELOADER_TRACK_WRITES = 8, /* -> a userfaultfd, to be taken and closed; reply: glibc's pointer guard */
  RELOADER_THREAD_WRITE = 9, /* args: offset in the reserve, size; text: bytes for the TLS init image */
  RELOADER_THREAD_OFFSETS = 10, /* args: names, text bytes -> offset from the thread pointer, 0: none, 1: not static */
  RELOADER_THREAD_ATEXITS = 11, /* args: __dso_handle -> destructors that threads still have to call */
  RELOADER_CALL_CATCHING = 12, /* args: as CALL -> result; reply: 1 if it threw, then the type's mangled name */
  RELOADER_OCAML_ATTACH = 13, /* args: count, seen to have let go; text: addresses in ocaml.h's order -> mode */
  RELOADER_OCAML_RUN = 14,    /* args: limit, words, token, script, patience, globals -> 0 done, 1 gave up, 2.. undone */
  RELOADER_OCAML_RETIRE = 15, /* args, text: see ocaml_mark.c -> how many units stay; reply: three words each */
  RELOADER_OCAML_HOLD = 16,   /* args: entry of a unit to wait at (0: let go), limit -> 0; before main only */
  RELOADER_JIT_REGISTER = 17, /* args: count; text: symbol files for debuggers, as in jit.c -> 0 */
  RELOADER_SIGNAL_HANDLERS = 18 /* -> 0; reply: of each signal from 1 on, the function that the kernel calls */
};

enum reloader_agent_state { RELOADER_STARTING = 0, RELOADER_IDLE = 1, RELOADER_BUSY = 2 };

/* params.status */
enum reloader_status {
  RELOADER_OK = 0,
  RELOADER_NO_MEMFD = 1,    /* memfd_create failed */
  RELOADER_NO_SPACE = 2,    /* no hole near the executable */
  RELOADER_NO_MAP = 3,      /* a region could not be mapped */
  RELOADER_NO_THREAD = 4,   /* pthread_create failed */
  RELOADER_TWICE = 5,       /* this copy of the agent already runs */
  RELOADER_FILE_LIMIT = 6   /* RLIMIT_FSIZE is below the arena's size */
};

struct reloader_region {
  uint64_t addr;
  uint64_t size;
  uint64_t file_offset;
};

struct reloader_command {
  uint32_t op;
  uint32_t error; /* errno of a failed command */
  uint64_t args[8]; /* the last: nobody waits for the answer any more */
  uint64_t result;
};

/* A crash, written by the thread that crashed. */
struct reloader_crash {
  uint32_t complete; /* written last */
  int32_t signal;
  int32_t code; /* si_code */
  uint32_t pid; /* as the process sees itself */
  uint32_t tid;
  uint32_t word_count;
  uint64_t fault_addr;
  uint64_t pc;
  uint64_t sp;
  uint64_t words[RELOADER_CRASH_WORDS]; /* of the stack, innermost first: those that point into the arena's code */
};

/* Private to a process; fork copies it. */
struct reloader_own {
  uint64_t progress;     /* the daemon's: how far a new object is initialised */
  uint64_t forks;        /* how often the process has forked */
  uint64_t forks_wanted; /* the daemon's: OCaml work is done only if `forks` is one less; 0: whatever it is */
};

struct reloader_control {
  uint64_t magic; /* written last by the agent, so a reader never sees half a header */
  uint32_t version;
  uint32_t header_size;
  uint32_t target_pid; /* as the daemon sees it */
  uint32_t daemon_pid; /* 0: none */
  uint64_t daemon_start; /* its start time in clock ticks: a pid alone may be reused */
  uint32_t holder_pid;
  uint32_t holder_fd;
  uint64_t generation; /* the last that is live */
  uint64_t file_size;
  uint64_t exe_start; /* the main executable's mapped range */
  uint64_t exe_end;
  uint64_t agent_base; /* load address of the agent itself */
  struct reloader_region regions[RELOADER_REGION_COUNT];
  uint32_t agent_tid;
  uint32_t agent_state;
  uint32_t doorbell;  /* futex: the daemon adds one for each command */
  uint32_t done_bell; /* futex: the agent adds one for each answer */
  uint32_t ring_head; /* commands given */
  uint32_t ring_tail; /* commands answered */
  struct reloader_command ring[RELOADER_RING_SIZE];
  uint64_t thread_offset; /* of the thread-local reserve from the thread pointer, negative */
  uint64_t thread_size;   /* 0: there is none */
  uint64_t thread_taken[RELOADER_THREAD_MOST / RELOADER_THREAD_UNIT / 64]; /* a bit a unit, set by the daemon */
  uint64_t enter_addr;    /* of reloader_enter, which gives a forked process an agent thread of its own */
  uint64_t own_addr;      /* of the reloader_own that each process has for itself */
  uint32_t addressee;     /* the process of the family that commands are for, as the daemon sees it; 0: the first */
  uint32_t first_pid;     /* the process that mapped the arena, as the daemon sees it; others were forked from it */
  uint64_t caml_token; /* of the last OCaml script that was executed to its end */
  uint32_t caml_phase; /* 0 idle, 1 on the way to a safe point, 2 inside of it */
  uint32_t caml_reached_by; /* 1 the program came by, 2 a thread of ours took the runtime */
  uint64_t caml_wait_us;
  uint64_t caml_inside_us;
  uint32_t crash_count; /* of this family; only the first few are written down */
  uint32_t crash_seen;  /* the daemon's: how many it knows */
  struct reloader_crash crashes[RELOADER_CRASHES];
};

/* Given to and filled by reloader_start. */
struct reloader_params {
  uint64_t code_size; /* 0: the default */
  uint64_t rodata_size;
  uint64_t data_size;
  uint64_t control_addr; /* out */
  uint64_t file_size;    /* out */
  int32_t memfd;         /* out; the daemon takes it, then it is closed here */
  int32_t status;        /* out: enum reloader_status */
  int32_t error;         /* out: errno */
  uint32_t injected;     /* in: 1 if entered by dlopen, so that import tables need patching */
};

/* The first message of a preloaded agent, with the memfd beside it. */
struct reloader_hello {
  uint64_t magic;
  uint32_t version;
  uint32_t pid; /* in the target's own pid namespace */
  uint64_t control_addr;
  uint64_t file_size;
  int32_t status;
  int32_t error;
};

struct reloader_unwind_entry {
  uint64_t start;
  uint64_t end;
  uint64_t eh_frame_hdr_addr;
};

/* Sorted by start; in the arena's rodata; immutable once slot 0 points at it. */
struct reloader_unwind_directory {
  uint64_t count;
  struct reloader_unwind_entry entries[];
};

#endif
