/* A program of several processes. Each listens at the socket `pN` in the working folder, N being its index, and
 * answers one line a connection:
 *   a N    answer(N)
 *   f N    fork a process of index N
 *   d N    the same, and end: as a daemon does
 *   t      start a thread that does nothing
 *   l      load the library extra.so of the working folder
 *   v      vfork a child that waits, before it calls exec, until its input ends; says the child's number
 *   x      exec another program
 *   q      end
 * Process 0 ends with its input. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int answer(int);

static int listener = -1;

static void *wait_for_ever(void *unused) {
  for (;;) pause();
  return unused;
}

static void take_place(int index) {
  struct sockaddr_un name = {.sun_family = AF_UNIX};
  if (listener >= 0) close(listener);
  listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  snprintf(name.sun_path, sizeof name.sun_path, "p%d", index);
  unlink(name.sun_path);
  if (bind(listener, (struct sockaddr *)&name, sizeof name) || listen(listener, 64)) _exit(9);
}

static void spawn_slowly(int connection) {
  static int told;
  told = connection;
  pid_t child = vfork();
  if (!child) {
    char byte;
    dprintf(told, "%d\n", (int)getpid());
    while (read(told, &byte, 1) > 0) continue;
    execl("/bin/true", "true", NULL);
    _exit(1);
  }
}

static void obey(int connection) {
  char line[64] = "";
  ssize_t size = read(connection, line, sizeof line - 1);
  int number = size > 1 ? atoi(line + 1) : 0;
  pthread_t thread;
  switch (line[0]) {
    case 'a':
      dprintf(connection, "%d\n", answer(number));
      break;
    case 'f':
    case 'd':
      if (!fork()) {
        take_place(number);
        dprintf(connection, "%d\n", (int)getpid());
      } else if (line[0] == 'd') {
        _exit(0);
      }
      break;
    case 't':
      dprintf(connection, "%d\n", pthread_create(&thread, NULL, wait_for_ever, NULL));
      break;
    case 'l':
      dprintf(connection, "%d\n", dlopen("./extra.so", RTLD_NOW | RTLD_GLOBAL) ? 0 : 1);
      break;
    case 'v':
      spawn_slowly(connection);
      break;
    case 'x':
      dprintf(connection, "0\n");
      execl("/bin/sleep", "sleep", "1000", NULL);
      _exit(1);
    case 'q':
      dprintf(connection, "0\n");
      _exit(0);
  }
  close(connection);
}

int main(void) {
  signal(SIGCHLD, SIG_IGN);
  setvbuf(stdout, NULL, _IOLBF, 0);
  take_place(0);
  pid_t first = getpid();
  puts("ready");
  for (;;) {
    struct pollfd ready[2] = {{.fd = listener, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
    if (poll(ready, getpid() == first ? 2 : 1, -1) < 0) continue;
    if (getpid() == first && ready[1].revents) return 0;
    int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (connection >= 0) obey(connection);
  }
}
