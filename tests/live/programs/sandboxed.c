/* Answers lines under a seccomp filter. Arguments: what happens at a call, its number, and optionally which argument
 * has to have one of which bits for that. With a fifth argument the filter is that of another thread alone. */
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

static char **words;

static int confine(void) {
  unsigned action = (unsigned)strtoul(words[1], NULL, 0), number = (unsigned)atoi(words[2]);
  unsigned at = words[3] ? (unsigned)atoi(words[3]) : 0, bits = words[3] ? (unsigned)strtoul(words[4], NULL, 0) : 0;
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (unsigned)offsetof(struct seccomp_data, args) + 8 * at),
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, bits, 0, bits ? 1 : 0),
      BPF_STMT(BPF_RET | BPF_K, action),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {sizeof code / sizeof *code, code};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -1;
  return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static void *confined(void *unused) {
  char line[16];
  if (confine()) _exit(1);
  setvbuf(stdout, NULL, _IOLBF, 0);
  puts("ready");
  while (fgets(line, sizeof line, stdin)) puts("41");
  _exit(0);
  return unused;
}

int main(int count, char **arguments) {
  pthread_t other;
  words = arguments;
  if (count < 6) confined(NULL);
  if (pthread_create(&other, NULL, confined, NULL)) return 1;
  return pthread_join(other, NULL);
}
