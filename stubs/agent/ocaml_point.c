/* A moment at which the program's OCaml part stands still, reached without a signal and without stopping it.
 *
 * Two ways race, and one compare-and-swap on `want` decides. OCaml code that runs comes by a hook that the
 * runtime calls where a signal handler could run. A program that is blocked in a system call has let go of
 * the runtime: a thread of ours takes it meanwhile, and a system call that ends waits for us.
 *
 *   4.x, no threads   let go and take again are hooks that do nothing: ours make a lock of them (`lock`)
 *   5.x, no threads   the domain's lock
 *   systhreads        a thread that registers itself
 *
 * While our thread runs OCaml code, it must not let go itself: another would continue on its stack.
 */
#define _GNU_SOURCE
#include "ocaml.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SLICE_MS 10           /* between two looks whether hooks were replaced or a request got lost */
#define STACK_MIN (8ull << 20)
#define STACK_MAX (256ull << 20)
#define SIGNAL_STACK (64u << 10)

enum { IDLE, WANTED, INSIDE, DONE };                 /* want */
enum { UNKNOWN, PROGRAM, FREE, AGENT };              /* lock: who has a 4.x runtime without threads */
enum { BY_HOOK = 1, BY_THREAD = 2 };                 /* control->caml_reached_by */

typedef void (*plain_hook)(void);
typedef int (*mask_hook)(int, const sigset_t *, sigset_t *);

static uint32_t want, lock, borrowers;
static struct caml_work *work;
/* Who runs the work, and who of ours has a runtime that does not know it; each set and cleared by itself, so that
 * nobody else can ever take itself for it. */
static pthread_t runner, tenant;
static uint64_t call_since_us; /* when the call into OCaml began that may take too long, 0: none */
static uint64_t overdue_since; /* the call that is to be interrupted, by when it began */
static plain_hook old_enter, old_leave, old_interrupt;
static mask_hook old_mask;
static uint64_t *domain_zero;

uint64_t reloader_caml_now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static void wake(uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1 << 20, NULL, NULL, 0); }

static void wait_ms(uint32_t *word, uint32_t value, uint64_t ms) {
  struct timespec limit = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, ms ? &limit : NULL, NULL, 0);
}

static int change(uint32_t *word, uint32_t from, uint32_t to) {
  return __atomic_compare_exchange_n(word, &from, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static uint32_t load(uint32_t *word) { return __atomic_load_n(word, __ATOMIC_SEQ_CST); }

static void store(uint32_t *word, uint32_t value) { __atomic_store_n(word, value, __ATOMIC_SEQ_CST); }

static int is_me(pthread_t *thread) { return __atomic_load_n(thread, __ATOMIC_SEQ_CST) == pthread_self(); }

static void set(pthread_t *thread, pthread_t value) { __atomic_store_n(thread, value, __ATOMIC_SEQ_CST); }

static int is_up(void) { return CAML_VARIABLE(volatile int64_t, caml_globals_inited) > 0; }

/* Handlers would run OCaml code in the midst of ours; a stack overflow must still become an exception. */
static void block_signals(sigset_t *old) {
  sigset_t all;
  sigfillset(&all);
  sigdelset(&all, SIGSEGV);
  pthread_sigmask(SIG_SETMASK, &all, old);
}

/* To be called by who holds the runtime. */
static void try_work(int by) {
  if (load(&want) != WANTED || CAML_VARIABLE(volatile uint64_t, caml_globals_inited) < work->globals_needed) return;
  if (!change(&want, WANTED, INSIDE)) return;
  sigset_t old;
  int saved_errno = errno;
  uint64_t began = reloader_caml_now_us();
  block_signals(&old);
  set(&runner, pthread_self());
  reloader_control->caml_reached_by = (uint32_t)by;
  reloader_control->caml_phase = 2;
  work->is_refused = reloader_has_forked();
  if (!work->is_refused) work->run(work);
  reloader_control->caml_inside_us = reloader_caml_now_us() - began;
  set(&runner, 0);
  store(&want, DONE);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  errno = saved_errno;
  wake(&want);
}

/* The runtime's hooks. */

static void enter_hook(void) {
  if (is_me(&tenant)) return;
  old_enter();
  if (reloader_caml.family != 4) return;
  store(&lock, FREE);
  if (load(&want) == WANTED) wake(&lock);
}

static void leave_hook(void) {
  if (is_me(&tenant)) return;
  for (uint32_t seen = load(&lock); reloader_caml.family == 4; seen = load(&lock)) {
    if (seen == AGENT)
      wait_ms(&lock, AGENT, 0);
    else if (change(&lock, seen, PROGRAM))
      break;
  }
  old_leave();
}

static void overdue_call(void) {
  uint64_t since = call_since_us;
  if (!since || !is_me(&runner)) return;
  if (__atomic_compare_exchange_n(&overdue_since, &since, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
    CAML(void, caml_failwith, const char *)("it takes too long and was interrupted");
}

/* 4.x, where handlers of pending signals are about to run. */
static int mask_hook_4(int how, const sigset_t *set, sigset_t *old) {
  if (how == SIG_BLOCK && !set) {
    overdue_call();
    if (load(&lock) == UNKNOWN) change(&lock, UNKNOWN, PROGRAM);
    CAML_VARIABLE(volatile int64_t, caml_pending_signals) = 0;
    try_work(BY_HOOK);
  }
  return old_mask(how, set, old);
}

/* 5.x, after all other pending actions. */
static void interrupt_hook_5(void) {
  overdue_call();
  if (is_me(&runner)) return; /* no other thread in the midst of our work */
  if (reloader_caml_domain() == domain_zero) try_work(BY_HOOK);
  old_interrupt();
}

static void wrap(uint64_t *place, void *own, void *old) {
  uint64_t now = __atomic_load_n(place, __ATOMIC_SEQ_CST);
  if (now == (uint64_t)own) return;
  *(uint64_t *)old = now;
  __atomic_compare_exchange_n(place, &now, (uint64_t)own, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static uint64_t *hook(enum caml_symbol symbol) { return (uint64_t *)reloader_caml.at[symbol]; }

/* Systhreads replaces hooks when it is initialised, without calling ours: so they are looked at again.
 * The order matters: "let go" without "take" would leave a runtime that runs marked as free. */
static void install(void) {
  static int wrapped;
  if (reloader_caml.family == 4)
    wrap(hook(at_caml_sigmask_hook), mask_hook_4, &old_mask);
  else
    wrap(hook(at_caml_domain_external_interrupt_hook), interrupt_hook_5, &old_interrupt);
  if (wrapped || (reloader_caml_has_threads() && reloader_caml.family == 4)) return;
  wrapped = 1;
  wrap(hook(at_caml_leave_blocking_section_hook), leave_hook, &old_leave);
  wrap(hook(at_caml_enter_blocking_section_hook), enter_hook, &old_enter);
}

/* `is_let_go`: the program was seen inside of a blocking section while our hooks were there already. Returns whether
 * somebody should look: in a program that was entered late nobody knows until it comes to a hook. */
uint64_t reloader_caml_hooks(uint64_t is_let_go) {
  install();
  if (is_let_go) change(&lock, UNKNOWN, FREE);
  return reloader_caml.family == 4 && load(&lock) == UNKNOWN && is_up() && !reloader_caml_has_threads();
}

/* Signal 0 does not exist: pending, it makes the runtime look, and no handler is ever called for it. */
static void ask(void) {
  if (!is_up()) return;
  if (reloader_caml.family == 4) {
    CAML(void, caml_record_signal, int)(0);
    return;
  }
  if (!domain_zero) {
    CAML(void, caml_init_domain_self, int)(0);
    domain_zero = reloader_caml_domain();
    __asm__ volatile("movq $0, %%fs:(%0)" ::"r"(reloader_caml.at[at_caml_state]) : "memory");
  }
  const struct caml_fields *fields = reloader_caml.fields;
  __atomic_store_n(&domain_zero[fields->external_interrupt], 1, __ATOMIC_SEQ_CST);
  __atomic_store_n(&domain_zero[fields->action_pending], 1, __ATOMIC_SEQ_CST);
  __atomic_store_n(&domain_zero[fields->young_limit], UINT64_MAX, __ATOMIC_SEQ_CST);
}

/* The thread that takes a runtime which the program has let go of. */

static void borrow(void) {
  uint64_t *domain = reloader_caml_domain(), saved = 0;
  uint8_t top = reloader_caml.fields->top_of_stack;
  if (top) { /* 4.x tells a stack overflow by it */
    saved = domain[top];
    domain[top] = (uint64_t)__builtin_frame_address(0);
  }
  set(&tenant, pthread_self());
  try_work(BY_THREAD);
  set(&tenant, 0);
  if (top) domain[top] = saved;
}

static void borrow_locked(void) {
  while (load(&want) == WANTED && !reloader_caml_has_threads()) {
    uint32_t seen = load(&lock);
    if (seen != FREE) {
      wait_ms(&lock, seen, SLICE_MS);
    } else if (change(&lock, FREE, AGENT)) {
      borrow();
      store(&lock, FREE);
      wake(&lock);
      if (load(&want) == WANTED) wait_ms(&want, WANTED, SLICE_MS); /* initialisers have not ended */
    }
  }
}

static int borrow_registered(void) {
  if (!CAML(int, caml_c_thread_register, void)()) return 0;
  CAML(void, caml_leave_blocking_section, void)();
  try_work(BY_THREAD);
  CAML(void, caml_enter_blocking_section_no_pending, void)();
  CAML(int, caml_c_thread_unregister, void)();
  return 1;
}

static void borrow_domain(void) {
  CAML(void, caml_init_domain_self, int)(0);
  CAML(void, caml_acquire_domain_lock, void)();
  /* systhreads that was initialised meanwhile would not know this thread */
  if (*hook(at_caml_enter_blocking_section_hook) == (uint64_t)enter_hook) borrow();
  CAML(void, caml_release_domain_lock, void)();
}

static void *borrower(void *unused) {
  char signal_stack[SIGNAL_STACK];
  stack_t stack = {.ss_sp = signal_stack, .ss_size = sizeof signal_stack};
  sigset_t none;
  sigaltstack(&stack, NULL);
  block_signals(&none);
  pthread_setname_np(pthread_self(), "reloader-ocaml");
  if (!reloader_caml_has_threads() && reloader_caml.family == 4)
    borrow_locked();
  else if (!reloader_caml_has_threads() || !borrow_registered())
    borrow_domain();
  stack.ss_flags = SS_DISABLE;
  sigaltstack(&stack, NULL);
  store(&borrowers, 0);
  wake(&borrowers);
  return unused;
}

/* One thread waits for the runtime at most; one that came too late for its work serves the next. */
static void start_borrower(void) {
  if (!is_up() || !change(&borrowers, 0, 1)) return;
  struct rlimit limit = {0, 0};
  getrlimit(RLIMIT_STACK, &limit);
  uint64_t size = limit.rlim_cur < STACK_MIN ? STACK_MIN : limit.rlim_cur > STACK_MAX ? STACK_MAX : limit.rlim_cur;
  sigset_t all, old;
  sigfillset(&all);
  pthread_attr_t attributes;
  pthread_t thread;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, size & ~4095ull);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  if (pthread_create(&thread, &attributes, borrower, NULL)) store(&borrowers, 0);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  pthread_attr_destroy(&attributes);
}

/* The agent's thread. */

static void interrupt_overdue(void) {
  uint64_t since = __atomic_load_n(&call_since_us, __ATOMIC_SEQ_CST);
  if (!work->patience_ms || !since || reloader_caml_now_us() - since < work->patience_ms * 1000) return;
  __atomic_store_n(&overdue_since, since, __ATOMIC_SEQ_CST);
  ask();
}

int reloader_caml_run(struct caml_work *given) {
  uint64_t began = reloader_caml_now_us();
  int gave_up = 0;
  work = given;
  reloader_control->caml_phase = 1;
  store(&want, WANTED);
  for (uint32_t seen = WANTED; seen != DONE && !gave_up; seen = load(&want)) {
    if (seen == WANTED) {
      install();
      start_borrower();
      ask();
      if (reloader_caml_is_held()) reloader_caml_let_go(); /* it is asked already */
      gave_up = reloader_caml_now_us() - began > given->limit_ms * 1000 && change(&want, WANTED, IDLE);
    } else {
      interrupt_overdue();
    }
    if (!gave_up) wait_ms(&want, seen, SLICE_MS);
  }
  reloader_control->caml_wait_us = reloader_caml_now_us() - began - (gave_up ? 0 : reloader_control->caml_inside_us);
  reloader_control->caml_phase = 0;
  store(&want, IDLE);
  __atomic_store_n(&overdue_since, 0, __ATOMIC_SEQ_CST);
  wake(&lock);
  reloader_caml_let_go();
  return gave_up || given->is_refused ? -1 : 0;
}

/* What does not come to a point at which it can be interrupted is late when it returns: who asked may have given up. */
caml_value reloader_caml_call(caml_value closure, uint64_t *late_ms) {
  uint64_t began = reloader_caml_now_us();
  __atomic_store_n(&call_since_us, began, __ATOMIC_SEQ_CST);
  caml_value result = CAML(caml_value, caml_callback_exn, caml_value, caml_value)(closure, CAML_UNIT);
  __atomic_store_n(&call_since_us, 0, __ATOMIC_SEQ_CST);
  uint64_t took_ms = (reloader_caml_now_us() - began) / 1000;
  *late_ms = work->patience_ms && took_ms >= work->patience_ms ? took_ms : 0;
  return result;
}

/* Only the thread that forked is left: nobody waits, and nobody borrows. */
void reloader_caml_in_child(void) {
  store(&want, IDLE);
  store(&borrowers, 0);
  set(&runner, 0);
  set(&tenant, 0);
  if (load(&lock) == AGENT) store(&lock, FREE);
}
