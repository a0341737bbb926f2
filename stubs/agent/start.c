/* Starts the agent: the arena, one thread, the unwinder's hooks. Nothing here prints or exits. */
#define _GNU_SOURCE
#include "ocaml.h"

#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define STACK_SIZE (256u << 10)

extern const ElfW(Ehdr) __ehdr_start __attribute__((visibility("hidden")));

struct reloader_control *reloader_control;
uint32_t reloader_number;
/* Each process's own; a forked child begins with its parent's. */
static struct reloader_own own;
static pid_t started;     /* the process that has the thread: _Fork calls no handlers */

static void *agent_thread(void *unused) {
  (void)unused;
  pthread_setname_np(pthread_self(), "reloader");
  reloader_serve();
  return NULL;
}

static void in_parent(void) { __atomic_add_fetch(&own.forks, 1, __ATOMIC_SEQ_CST); }

int reloader_has_forked(void) {
  uint64_t wanted = __atomic_load_n(&own.forks_wanted, __ATOMIC_SEQ_CST);
  return wanted && wanted != __atomic_load_n(&own.forks, __ATOMIC_SEQ_CST) + 1;
}

/* A forked child has no agent thread: flips reach it through the shared slots, and a program may count on being
 * alone with one thread there (unshare). The daemon has one made by reloader_enter when it needs it. */
static void in_child(void) {
  started = 0;
  reloader_caml_in_child();
}

static int start_thread(void) {
  pthread_attr_t attributes;
  pthread_t thread;
  sigset_t all, old;
  int error = pthread_attr_init(&attributes);
  if (error) return error;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, STACK_SIZE);
  /* Through pthread_sigmask: it leaves the C library's own signals alone, or setuid() would hang. */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  error = pthread_create(&thread, &attributes, agent_thread, NULL);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  pthread_attr_destroy(&attributes);
  return error;
}

static void undo(struct reloader_params *params, int status, int error) {
  munmap(reloader_control, params->file_size); /* the control region is the arena's first */
  reloader_control = NULL;
  close(params->memfd);
  params->memfd = -1;
  params->status = status;
  params->error = error;
}

RELOADER_EXPORT void reloader_start(struct reloader_params *params) {
  int saved_errno = errno;
  params->memfd = -1;
  params->error = 0;
  if (started == getpid()) {
    params->status = RELOADER_TWICE;
    params->control_addr = (uint64_t)reloader_control;
    return;
  }
  struct reloader_control *control = reloader_map_arena(params);
  if (control) {
    reloader_control = control;
    control->target_pid = (uint32_t)getpid();
    control->agent_base = (uint64_t)&__ehdr_start;
    control->enter_addr = (uint64_t)reloader_enter;
    control->own_addr = (uint64_t)&own;
    reloader_unwind_prepare();
    reloader_threads_prepare(control);
    int error = start_thread();
    if (error) {
      undo(params, RELOADER_NO_THREAD, error);
    } else {
      started = getpid();
      pthread_atfork(NULL, in_parent, in_child);
      if (params->injected) reloader_unwind_patch();
      reloader_crash_prepare();
      __atomic_store_n(&control->magic, RELOADER_MAGIC, __ATOMIC_RELEASE);
    }
  }
  errno = saved_errno;
}

/* Called by the daemon on a borrowed thread of a forked child, or of the first process to give it its number back. */
uint64_t reloader_enter(uint64_t number) {
  int saved_errno = errno, error = 0;
  reloader_number = (uint32_t)number;
  if (started != getpid()) error = start_thread();
  if (!error) started = getpid();
  errno = saved_errno;
  return (uint64_t)error;
}
