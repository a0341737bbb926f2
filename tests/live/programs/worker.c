/* A program that answers lines and can be busy in several ways: what attach and stops are tried on.
 * Arguments: threads that spin, threads in malloc, 1 to take signals on an alternate stack. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <execinfo.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

volatile long counter = 41;
volatile int handled;
extern char **environ;

static void *spin(void *unused) {
  for (double x = 1;; x = x * 1.0000001 + 1) {
    counter += x > 0;
    if (x > 1e9) x = 1;
  }
  return unused;
}

static void *allocate(void *unused) {
  for (;;) {
    void *p = malloc(1000 + (size_t)counter % 3000);
    memset(p, 1, 10);
    free(p);
  }
  return unused;
}

static void handler(int signal) { (void)signal; handled++; for (;;) pause(); }

static int child_says(void) {
  int ends[2], value = -1;
  if (pipe(ends)) return -1;
  pid_t pid = fork();
  if (!pid) {
    value = 7;
    _exit(write(ends[1], &value, sizeof value) != sizeof value);
  }
  if (read(ends[0], &value, sizeof value) != sizeof value) value = -2;
  waitpid(pid, NULL, 0);
  close(ends[0]);
  close(ends[1]);
  return value;
}

static int environment_names(void) {
  int found = 0;
  for (char **e = environ; *e; e++) found += !strncmp(*e, "RELOADER_", 9) || !strncmp(*e, "LD_PRELOAD=", 11);
  return found;
}

static void in_handler(void) {
  pthread_t thread;
  static char space[65536];
  stack_t alternate = {.ss_sp = space, .ss_size = sizeof space};
  struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
  (void)alternate;
  sigaction(SIGUSR1, &action, NULL);
  long before = counter;
  pthread_create(&thread, NULL, spin, NULL);
  while (counter == before) usleep(100);
  pthread_kill(thread, SIGUSR1);
  while (!handled) usleep(100);
}

int main(int count, char **arguments) {
  char big[200000], line[64]; /* big keeps what the loader left on the stack */
  pthread_t thread;
  __asm__ volatile("" ::"r"(big) : "memory");
  for (int i = 0; count > 1 && i < atoi(arguments[1]); i++) pthread_create(&thread, NULL, spin, NULL);
  for (int i = 0; count > 2 && i < atoi(arguments[2]); i++) pthread_create(&thread, NULL, allocate, NULL);
  setvbuf(stdout, NULL, _IOLBF, 0);
  printf("ready %p %p\n", (void *)&counter, (void *)spin);
  while (fgets(line, sizeof line, stdin)) {
    if (!strncmp(line, "fork", 4)) printf("%d\n", child_says());
    else if (!strncmp(line, "env", 3)) printf("%d %s\n", environment_names(), getenv("LD_PRELOAD") ? getenv("LD_PRELOAD") : "-");
    else if (!strncmp(line, "signal", 6)) { in_handler(); printf("in handler\n"); }
    else if (!strncmp(line, "run ", 4)) { line[strcspn(line, "\n")] = 0; printf("%d\n", system(line + 4)); }
    else printf("%ld\n", counter);
  }
  return 0;
}
