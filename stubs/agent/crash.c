/* Writes down where the program crashes, and lets it crash as it would have.
 *
 * A handler stands only where the default action (a core dump) stood. It notes the signal, the place and the words
 * of the stack that point into the arena's code, takes itself away and lets the same thing happen again: a faulting
 * instruction is executed once more, anything else is queued again with the information it came with. Core dump and
 * status are those of the first time. What overflows a stack without an alternate one cannot be noted.
 *
 * A program that asks for the handler is told of the default one (under `reloader run`, where our `sigaction` and
 * `signal` come before the C library's): some set up their own only then.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

#define SCANNED (256u << 10) /* bytes of the stack that are looked at */
#define PIECE 512u           /* words read at a time: the stack we are on may be small */

extern int __sigaction(int number, const struct sigaction *new, struct sigaction *old);

static const int fatal[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS};

static int is_fatal(int number) {
  for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++)
    if (fatal[i] == number) return 1;
  return 0;
}

/* By the kernel, not by us: the stack may end or be broken. */
static void note_stack(struct reloader_crash *crash, const struct reloader_region *code) {
  uint64_t words[PIECE], at = crash->sp & ~7ull;
  for (uint64_t end = at + SCANNED; at < end && crash->word_count < RELOADER_CRASH_WORDS; at += sizeof words) {
    struct iovec here = {words, sizeof words}, there = {(void *)at, sizeof words};
    ssize_t size = syscall(SYS_process_vm_readv, syscall(SYS_getpid), &here, 1, &there, 1, 0);
    for (ssize_t i = 0; i < size / 8 && crash->word_count < RELOADER_CRASH_WORDS; i++)
      if (words[i] - code->addr < code->size) crash->words[crash->word_count++] = words[i];
    if (size != (ssize_t)sizeof words) return;
  }
}

static void note(int number, const siginfo_t *info, const ucontext_t *context) {
  struct reloader_control *control = reloader_control;
  uint32_t row = __atomic_fetch_add(&control->crash_count, 1, __ATOMIC_SEQ_CST);
  if (row >= RELOADER_CRASHES) return;
  struct reloader_crash *crash = &control->crashes[row];
  crash->signal = number;
  crash->code = info->si_code;
  crash->pid = (uint32_t)syscall(SYS_getpid);
  crash->tid = (uint32_t)syscall(SYS_gettid);
  crash->fault_addr = info->si_code > 0 ? (uint64_t)info->si_addr : 0;
  crash->pc = (uint64_t)context->uc_mcontext.gregs[REG_RIP];
  crash->sp = (uint64_t)context->uc_mcontext.gregs[REG_RSP];
  crash->word_count = 0;
  note_stack(crash, &control->regions[RELOADER_CODE]);
  __atomic_store_n(&crash->complete, 1, __ATOMIC_RELEASE);
}

static void crashed(int number, siginfo_t *info, void *context) {
  int saved_errno = errno;
  struct sigaction standard = {.sa_handler = SIG_DFL};
  if (reloader_control) note(number, info, context);
  __sigaction(number, &standard, NULL);
  int faults = number == SIGSEGV || number == SIGBUS || number == SIGILL || number == SIGFPE;
  if (!faults || info->si_code <= 0 || (number == SIGBUS && info->si_code == BUS_MCEERR_AO))
    syscall(SYS_rt_tgsigqueueinfo, syscall(SYS_getpid), syscall(SYS_gettid), number, info);
  errno = saved_errno;
}

static void stand(int number) {
  struct sigaction ours = {.sa_sigaction = crashed, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  sigfillset(&ours.sa_mask);
  __sigaction(number, &ours, NULL);
}

static int is_default(int number) {
  struct sigaction now;
  return !__sigaction(number, NULL, &now) && !(now.sa_flags & SA_SIGINFO) && now.sa_handler == SIG_DFL;
}

void reloader_crash_prepare(void) {
  for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++)
    if (is_default(fatal[i])) stand(fatal[i]);
}

/* What only the kernel knows: an address there is in no memory of the process. */
uint64_t reloader_signal_handlers(uint64_t *reply) {
  for (int number = 1; number <= 64; number++) {
    struct sigaction now;
    uint64_t *handler = &reply[number - 1];
    *handler = __sigaction(number, NULL, &now) ? 0 : (uint64_t)now.sa_handler;
  }
  return 0;
}

RELOADER_EXPORT int sigaction(int number, const struct sigaction *new, struct sigaction *old) {
  int result = __sigaction(number, new, old);
  if (result || !reloader_control || !is_fatal(number)) return result;
  if (old && old->sa_flags & SA_SIGINFO && old->sa_sigaction == crashed) {
    memset(old, 0, sizeof *old);
    old->sa_handler = SIG_DFL;
  }
  if (new && !(new->sa_flags & SA_SIGINFO) && new->sa_handler == SIG_DFL) stand(number);
  return result;
}

RELOADER_EXPORT sighandler_t signal(int number, sighandler_t new) {
  static sighandler_t (*next)(int, sighandler_t);
  if (!next) next = (sighandler_t(*)(int, sighandler_t))dlsym(RTLD_NEXT, "signal");
  if (!next) return SIG_ERR;
  sighandler_t old = next(number, new);
  if (old == SIG_ERR || !reloader_control || !is_fatal(number)) return old;
  if (new == SIG_DFL) stand(number);
  return old == (sighandler_t)(void *)crashed ? SIG_DFL : old;
}
