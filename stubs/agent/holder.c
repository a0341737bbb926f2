/* reloader-holder FD PID: keeps the arena's memfd open until process PID has ended.
 *
 * The target keeps no descriptor of ours, and opening one's own /proc/PID/map_files needs privileges. So a
 * daemon that comes later opens /proc/HOLDER/fd/3 instead.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KEPT_FD 3

static void close_all_but_kept(void) {
  int null = open("/dev/null", O_RDWR);
  for (int fd = 0; fd < KEPT_FD && null >= 0; fd++) dup2(null, fd);
  if (syscall(SYS_close_range, KEPT_FD + 1, ~0u, 0) == 0) return;
  for (int fd = KEPT_FD + 1; fd < sysconf(_SC_OPEN_MAX); fd++) close(fd);
}

int main(int count, char **arguments) {
  if (count != 3) return 2;
  int memfd = atoi(arguments[1]);
  int pid = atoi(arguments[2]);
  if (memfd != KEPT_FD && dup2(memfd, KEPT_FD) < 0) return 1;
  close_all_but_kept();
  setsid();
  prctl(PR_SET_NAME, "reloader-holder");
  signal(SIGHUP, SIG_IGN);
  if (chdir("/")) return 1;
  int target = (int)syscall(SYS_pidfd_open, pid, 0);
  if (target < 0) return 1;
  struct pollfd wait = {.fd = target, .events = POLLIN};
  while (poll(&wait, 1, -1) < 0) continue;
  return 0;
}
