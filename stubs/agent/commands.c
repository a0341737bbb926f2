/* The command ring: the daemon gives, this thread answers. */
#define _GNU_SOURCE
#include "ocaml.h"

#include <dlfcn.h>
#include <errno.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint64_t (*any_function)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);

static char *text_area(void) { return (char *)reloader_control + RELOADER_TEXT_OFFSET; }
static uint64_t *reply_area(void) { return (uint64_t *)((char *)reloader_control + RELOADER_REPLY_OFFSET); }

/* `name@VERSION` asks for that version; the program and its libraries are searched in link-map order. */
static uint64_t resolve_one(char *name) {
  char *at = strchr(name, '@');
  uint64_t own = reloader_own_symbol(name);
  if (own) return own;
  if (!at || at == name) {
    uint64_t found = (uint64_t)dlsym(RTLD_DEFAULT, name);
    return found ? found : reloader_old_symbol(name);
  }
  *at = 0;
  char *version = at + 1 + (at[1] == '@');
  uint64_t found = (uint64_t)dlvsym(RTLD_DEFAULT, name, version);
  *at = '@';
  return found;
}

static void resolve(const struct reloader_command *command, uint64_t (*look_up)(char *)) {
  char *name = text_area(), *end = name + command->args[1];
  uint64_t *reply = reply_area();
  if (command->args[1] > RELOADER_TEXT_SIZE) return;
  for (uint64_t i = 0; i < command->args[0] && name < end && i * 8 < RELOADER_REPLY_SIZE; i++) {
    reply[i] = look_up(name);
    name += strlen(name) + 1;
  }
}

static uint64_t offset_of(char *name) { return reloader_thread_offset(name); }

static uint64_t discard(const struct reloader_command *command) {
  const uint64_t *pairs = (const uint64_t *)text_area();
  for (uint64_t i = 0; i < command->args[0] && i * 16 < RELOADER_TEXT_SIZE; i++) {
    reloader_jit_forget(pairs[2 * i], pairs[2 * i + 1]);
    if (madvise((void *)pairs[2 * i], pairs[2 * i + 1], MADV_DONTNEED)) return (uint64_t)-1;
  }
  return 0;
}

/* Registering is idempotent, and lost by exec only, with all of us. */
static uint64_t sync_core(void) {
  long failed = syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0);
  if (!failed) failed = syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0);
  return (uint64_t)failed;
}

static uint64_t run(struct reloader_command *command) {
  const uint64_t *args = command->args;
  switch (command->op) {
    case RELOADER_PING:
      return args[0];
    case RELOADER_RESOLVE:
      resolve(command, resolve_one);
      return 0;
    case RELOADER_CALL:
      return ((any_function)args[0])(args[1], args[2], args[3], args[4], args[5], args[6]);
    case RELOADER_DISCARD:
      return discard(command);
    case RELOADER_SYNC_CORE:
      return sync_core();
    case RELOADER_CLOSE:
      return (uint64_t)close((int)args[0]);
    case RELOADER_PTRACER:
      return (uint64_t)prctl(PR_SET_PTRACER, args[0], 0, 0, 0);
    case RELOADER_HOOK_UNWIND:
      return (uint64_t)reloader_unwind_patch();
    case RELOADER_TRACK_WRITES:
      return reloader_track_writes(reply_area());
    case RELOADER_THREAD_WRITE:
      if (args[1] > RELOADER_TEXT_SIZE) return (uint64_t)-1;
      return reloader_threads_write(args[0], args[1], text_area());
    case RELOADER_THREAD_OFFSETS:
      resolve(command, offset_of);
      return 0;
    case RELOADER_THREAD_ATEXITS:
      return reloader_thread_atexits(args[0]);
    case RELOADER_CALL_CATCHING:
      return reloader_call_catching(args, reply_area());
    case RELOADER_OCAML_ATTACH:
      return reloader_caml_attach(args, (uint64_t *)text_area(), reply_area());
    case RELOADER_OCAML_RUN:
      return reloader_caml_script(args, (uint64_t *)text_area(), reply_area());
    case RELOADER_OCAML_RETIRE:
      return reloader_caml_retire(args, (uint64_t *)text_area(), reply_area());
    case RELOADER_OCAML_HOLD:
      return reloader_caml_hold(args);
    case RELOADER_JIT_REGISTER:
      return reloader_jit_register(args[0], text_area());
    case RELOADER_SIGNAL_HANDLERS:
      return reloader_signal_handlers(reply_area());
    default:
      errno = ENOSYS;
      return (uint64_t)-1;
  }
}

static void answer(struct reloader_control *control, uint32_t tail) {
  struct reloader_command *command = &control->ring[tail % RELOADER_RING_SIZE];
  __atomic_store_n(&control->agent_state, RELOADER_BUSY, __ATOMIC_RELEASE);
  errno = 0;
  command->result = run(command);
  command->error = (uint32_t)errno;
  __atomic_store_n(&control->agent_state, RELOADER_IDLE, __ATOMIC_RELEASE);
  __atomic_store_n(&control->ring_tail, tail + 1, __ATOMIC_RELEASE);
  __atomic_add_fetch(&control->done_bell, 1, __ATOMIC_SEQ_CST);
  /* Shared futexes, not PRIVATE: the waiter is another process. */
  syscall(SYS_futex, &control->done_bell, FUTEX_WAKE, 64, NULL, NULL, 0);
}

/* One ring serves all processes of a family; the daemon gives one command at a time. */
void reloader_serve(void) {
  struct reloader_control *control = reloader_control;
  if (!reloader_number) control->agent_tid = (uint32_t)syscall(SYS_gettid);
  __atomic_store_n(&control->agent_state, RELOADER_IDLE, __ATOMIC_RELEASE);
  for (;;) {
    uint32_t bell = __atomic_load_n(&control->doorbell, __ATOMIC_ACQUIRE);
    uint32_t tail = control->ring_tail;
    if (tail != __atomic_load_n(&control->ring_head, __ATOMIC_ACQUIRE) &&
        reloader_number == __atomic_load_n(&control->addressee, __ATOMIC_ACQUIRE)) {
      answer(control, tail);
      continue;
    }
    syscall(SYS_futex, &control->doorbell, FUTEX_WAIT, bell, NULL, NULL, 0);
  }
}
