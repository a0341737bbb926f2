/* A userfaultfd of this process for the daemon, which learns by it what was written since a scan.
 *
 * Only the process itself can make one. User mode only, so that no privilege is needed: with
 * asynchronous write protection the kernel resolves every fault by itself, those of system calls too, and
 * nobody ever waits. The daemon takes the descriptor and has this one closed; until then it is
 * moved out of the way of programs that count on the lowest free number.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#define HIGH_FD 500

static uint64_t pointer_guard(void) {
  uint64_t guard = 0;
#ifdef __x86_64__
  __asm__("mov %%fs:0x30, %0" : "=r"(guard)); /* tcbhead_t.pointer_guard */
#endif
  return guard;
}

uint64_t reloader_track_writes(uint64_t *reply) {
  int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
  if (fd < 0) return (uint64_t)-1;
  int high = fcntl(fd, F_DUPFD_CLOEXEC, HIGH_FD);
  if (high >= 0) {
    close(fd);
    fd = high;
  }
  errno = 0;
  reply[0] = pointer_guard();
  return (uint64_t)fd;
}
