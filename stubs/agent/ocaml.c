/* Entering an OCaml runtime: which of its parts are there, and which family they make. */
#define _GNU_SOURCE
#include "ocaml.h"

#include <errno.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Word offsets, from caml/domain_state.tbl; those of threads from otherlibs/systhreads/st_stubs.c. */
static const struct caml_fields fields_4_13 = {
    .young_limit = 0,
    .top_of_stack = 25,
    .backtrace_active = 29,
    .backtrace_pos = 30,
    .backtrace_buffer = 31,
    .local_roots = 36,
    .bottom_of_stack = 26,
    .last_return = 27,
    .thread_stack = 32,
    .thread_pos = 80,
    .thread_buffer = 88,
    .thread_exception = 96,
};
static const struct caml_fields fields_5_3 = {
    .young_limit = 0,
    .current_stack = 5,
    .action_pending = 7,
    .local_roots = 20,
    .backtrace_pos = 23,
    .backtrace_active = 24,
    .backtrace_buffer = 25,
    .external_interrupt = 32,
    .thread_stack = 32,
    .thread_pos = 56,
    .thread_buffer = 64,
    .thread_exception = 72,
};

struct reloader_caml reloader_caml;

uint64_t *reloader_caml_domain(void) {
  if (reloader_caml.family == 4) return CAML_VARIABLE(uint64_t *, Caml_state);
  uint64_t found;
  __asm__("movq %%fs:(%1), %0" : "=r"(found) : "r"(reloader_caml.at[at_caml_state]) : "memory");
  return (uint64_t *)found;
}

/* Whether systhreads has taken the runtime over; linked alone it has not. 5.x: it says so when asked. */
int reloader_caml_has_threads(void) {
  if (!reloader_caml.at[at_caml_c_thread_register]) return 0;
  return reloader_caml.family == 5 || CAML_VARIABLE(uint64_t, caml_channel_mutex_lock) != 0;
}

/* 4.x allows pointers to anything; what is a value its page table tells. */
int reloader_caml_is_value(caml_value v) {
  return reloader_caml.family == 5 || CAML(int, caml_page_table_lookup, caml_value)(v) != 0;
}

/* A stop of all domains. What is told of it changes only when a domain has become the leader of the next, which
 * is not before all have left the last one: so nobody waits for those who are slow to go on. */
static struct {
  void (*run)(void *data);
  void *data;
  uint64_t *leader;
  uint64_t **domains;
  int count;
  uint32_t wanted, finished; /* its number, and that of the last that is over; futex */
} stop;

static void lead_stop(uint64_t *domain) {
  stop.leader = domain;
  stop.wanted++;
}

/* On every domain at once: one acts, the others wait until it is done. */
static void in_stop(uint64_t *domain, void *unused, int count, uint64_t **domains) {
  (void)unused;
  if (domain != stop.leader) {
    for (uint32_t over; (over = __atomic_load_n(&stop.finished, __ATOMIC_ACQUIRE)) != stop.wanted;)
      syscall(SYS_futex, &stop.finished, FUTEX_WAIT_PRIVATE, over, NULL, NULL, 0);
    return;
  }
  stop.domains = domains;
  stop.count = count;
  stop.run(stop.data);
  __atomic_store_n(&stop.finished, stop.wanted, __ATOMIC_RELEASE);
  syscall(SYS_futex, &stop.finished, FUTEX_WAKE_PRIVATE, 1 << 20, NULL, NULL, 0);
}

/* Not from inside of another one. */
void reloader_caml_in_stop(void (*run)(void *data), void *data) {
  typedef void (*handler)(uint64_t *, void *, int, uint64_t **);
  if (reloader_caml.family == 4) {
    run(data);
    return;
  }
  stop.run = run;
  stop.data = data;
  while (!CAML(int, caml_try_run_on_all_domains, handler, void *, void (*)(uint64_t *))(in_stop, NULL, lead_stop))
    continue;
}

void reloader_caml_each_domain(void (*visit)(uint64_t *domain)) {
  if (reloader_caml.family == 4) visit(reloader_caml_domain());
  for (int i = 0; i < stop.count && reloader_caml.family == 5; i++) visit(stop.domains[i]);
}

static int needs(int family, int symbol) {
  static const int families[] = {
#define CAML_NEED(name, need) need,
      CAML_SYMBOLS(CAML_NEED)
#undef CAML_NEED
  };
  return families[symbol] & (family == 4 ? CAML4 : CAML5);
}

/* Returns the mode: 4 or 6, one more where systhreads is in use. The reply: which symbol lacks, or whether it would
 * help to know if the program is inside of a blocking section. */
uint64_t reloader_caml_attach(const uint64_t *args, const uint64_t *addresses, uint64_t *reply) {
  if (args[0] != CAML_SYMBOL_COUNT) {
    errno = EINVAL;
    return (uint64_t)-1;
  }
  int family = addresses[at_caml_try_run_on_all_domains] ? 5 : 4;
  for (int i = 0; i < CAML_SYMBOL_COUNT; i++) {
    if (addresses[i] || !needs(family, i)) continue;
    reply[0] = (uint64_t)i;
    errno = ENOSYS;
    return (uint64_t)-1;
  }
  if (!reloader_caml.family) {
    memcpy(reloader_caml.at, addresses, sizeof reloader_caml.at);
    reloader_caml.fields = family == 4 ? &fields_4_13 : &fields_5_3;
    reloader_caml.family = family;
  }
  reply[0] = reloader_caml_hooks(args[1]);
  return (uint64_t)(family == 4 ? 4 : 6) + (uint64_t)reloader_caml_has_threads();
}
