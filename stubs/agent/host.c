/* The program around objects that have no executable: it waits until they are linked, then calls their main.
 *
 * Linked without PIE, so that the arena is in the low 2 GiB and non-PIC objects fit too. It names the C
 * library's common variables, so that the linker copies them into it, where such objects reach them.
 * What it shall run arrives by one call of reloader_host_go on the agent's thread.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

struct reloader_host_plan {
  uint64_t entry; /* 0: nothing could be linked */
  uint64_t init, init_count; /* arrays of function pointers, in the order of the calls */
  uint64_t fini, fini_count;
};

static struct reloader_host_plan plan;
static sem_t ready;

__attribute__((visibility("default"))) void reloader_host_go(const struct reloader_host_plan *given) {
  plan = *given;
  sem_post(&ready);
}

__attribute__((used)) static void near_variables(void) {
  __asm__ volatile("" ::"r"(&stdin), "r"(&stdout), "r"(&stderr), "r"(&environ), "r"(&optarg), "r"(&optind));
  __asm__ volatile("" ::"r"(&opterr), "r"(&optopt), "r"(&timezone), "r"(&daylight), "r"(&tzname));
  __asm__ volatile("" ::"r"(&program_invocation_name), "r"(&program_invocation_short_name));
}

static void run_destructors(void) {
  void (*const *functions)(void) = (void (*const *)(void))plan.fini;
  for (uint64_t i = plan.fini_count; i > 0; i--) functions[i - 1]();
}

int main(int argc, char **argv) {
  /* who started us must not leave a program behind that never begins */
  prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
  while (sem_wait(&ready)) continue;
  prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0);
  if (!plan.entry) return 1;
  atexit(run_destructors);
  void (*const *init)(int, char **, char **) = (void (*const *)(int, char **, char **))plan.init;
  for (uint64_t i = 0; i < plan.init_count; i++) init[i](argc, argv, environ);
  return ((int (*)(int, char **, char **))plan.entry)(argc, argv, environ);
}
