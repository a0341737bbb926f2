/* The way in under `reloader run`: a constructor in a preloaded library, before main.
 *
 * RELOADER_FD is our end of a socket pair. The agent takes itself out of the environment first, so that
 * nothing of ours reaches the program's children; then sends the arena to the daemon and waits for its "go".
 * If the daemon is gone or silent, the program starts without us.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef PR_SET_PTRACER
#define PR_SET_PTRACER 0x59616d61
#endif
#define WAIT_MS 10000

/* Under a wrapper (`sh -c`, a build tool) only the named program becomes the target. */
static int is_wanted(void) {
  char path[4096];
  const char *wanted = getenv("RELOADER_PROGRAM");
  if (!wanted || !*wanted) return 1;
  ssize_t size = readlink("/proc/self/exe", path, sizeof path - 1);
  if (size <= 0) return 0;
  path[size] = 0;
  const char *slash = strrchr(path, '/');
  return !strcmp(slash ? slash + 1 : path, wanted);
}

/* The agent's path and a colon stand before the user's own LD_PRELOAD; what follows is restored exactly. */
static void clean_environment(void) {
  const char *preload = getenv("LD_PRELOAD");
  const char *rest = preload ? strchr(preload, ':') : NULL;
  char *copy = rest ? strdup(rest + 1) : NULL;
  if (copy)
    setenv("LD_PRELOAD", copy, 1);
  else
    unsetenv("LD_PRELOAD");
  free(copy);
  unsetenv("RELOADER_FD");
  unsetenv("RELOADER_DAEMON_PID");
  unsetenv("RELOADER_PROGRAM");
}

static int send_hello(int socket_fd, const struct reloader_params *params) {
  struct reloader_hello hello = {
      .magic = RELOADER_MAGIC,
      .version = RELOADER_VERSION,
      .pid = (uint32_t)getpid(),
      .control_addr = params->control_addr,
      .file_size = params->file_size,
      .status = params->status,
      .error = params->error,
  };
  struct iovec part = {&hello, sizeof hello};
  union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int))];
  } control = {.bytes = {0}};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
  if (params->memfd >= 0) {
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof control.bytes;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &params->memfd, sizeof(int));
  }
  return sendmsg(socket_fd, &message, MSG_NOSIGNAL) == (ssize_t)sizeof hello;
}

static void wait_for_go(int socket_fd) {
  struct pollfd wait = {.fd = socket_fd, .events = POLLIN};
  while (poll(&wait, 1, WAIT_MS) < 0 && errno == EINTR) continue;
}

__attribute__((constructor)) static void enter(void) {
  const char *number = getenv("RELOADER_FD");
  const char *daemon = getenv("RELOADER_DAEMON_PID");
  if (!number || !is_wanted()) return;
  int saved_errno = errno;
  int socket_fd = atoi(number);
  long daemon_pid = daemon ? atol(daemon) : 0;
  clean_environment();
  if (fcntl(socket_fd, F_SETFD, FD_CLOEXEC)) return;
  if (daemon_pid > 0) prctl(PR_SET_PTRACER, daemon_pid, 0, 0, 0);
  struct reloader_params params = {.memfd = -1};
  reloader_start(&params);
  if (send_hello(socket_fd, &params)) wait_for_go(socket_fd);
  if (params.memfd >= 0) close(params.memfd);
  close(socket_fd);
  errno = saved_errno;
}
