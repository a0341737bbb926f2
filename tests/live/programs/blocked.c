/* One thread for each blocking call. All are blocked before the test begins; a line on stdin lets them all
 * finish. Each then prints its name, its result and errno: none may show that anybody looked. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LONG_MS 60000

static int pipes[64][2], next_pipe;
static int event_fd, futex_word, sem_id, queue_id, notify_fd;
static pid_t child, child_for_pidfd;
static char lock_path[] = "/tmp/reloader-blocked-XXXXXX";
static int lock_holder;
static sem_t semaphore;
static struct sockaddr_in addresses[3];
static int listeners[3], pairs[4][2];
static pthread_t pausing, suspending, waiting;
static int pause_done, suspend_done;

static int new_pipe(void) {
  if (pipe(pipes[next_pipe])) abort();
  return pipes[next_pipe++][0];
}

static char byte;
static long do_read_pipe(int fd) { return read(fd, &byte, 1); }
static long do_poll(int fd) { struct pollfd p = {fd, POLLIN, 0}; return poll(&p, 1, LONG_MS); }
static long do_poll_endless(int fd) { struct pollfd p = {fd, POLLIN, 0}; return poll(&p, 1, -1); }
static long do_ppoll(int fd) {
  struct pollfd p = {fd, POLLIN, 0};
  struct timespec t = {60, 0};
  sigset_t none;
  sigemptyset(&none);
  return ppoll(&p, 1, &t, &none);
}
static long do_select(int fd) {
  fd_set set;
  FD_ZERO(&set);
  FD_SET(fd, &set);
  struct timeval t = {60, 0};
  return select(fd + 1, &set, NULL, NULL, &t);
}
static long do_epoll(int fd, int timeout) {
  struct epoll_event event = {.events = EPOLLIN};
  int e = epoll_create1(0);
  epoll_ctl(e, EPOLL_CTL_ADD, fd, &event);
  return epoll_wait(e, &event, 1, timeout);
}
static long do_epoll_wait(int fd) { return do_epoll(fd, LONG_MS); }
static long do_epoll_endless(int fd) { return do_epoll(fd, -1); }
static long do_epoll_pwait(int fd) {
  struct epoll_event event = {.events = EPOLLIN};
  int e = epoll_create1(0);
  sigset_t none;
  sigemptyset(&none);
  epoll_ctl(e, EPOLL_CTL_ADD, fd, &event);
  return epoll_pwait(e, &event, 1, -1, &none);
}
static long do_eventfd(int fd) { uint64_t v; (void)fd; return read(event_fd, &v, 8); }
static long do_timerfd(int fd) {
  uint64_t v;
  struct itimerspec spec = {.it_value = {2, 0}};
  (void)fd;
  int t = timerfd_create(CLOCK_MONOTONIC, 0);
  timerfd_settime(t, 0, &spec, NULL);
  return read(t, &v, 8);
}
static long slept(long (*sleeper)(void)) {
  struct timespec a, b;
  clock_gettime(CLOCK_MONOTONIC, &a);
  long result = sleeper();
  clock_gettime(CLOCK_MONOTONIC, &b);
  double seconds = (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
  return result ? result : seconds < 2.0 ? -2 : 0;
}
static long nanosleep_2(void) { struct timespec t = {2, 0}; return nanosleep(&t, NULL); }
static long clock_2(void) { struct timespec t = {2, 0}; return clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL); }
static long clock_absolute_2(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  t.tv_sec += 2;
  t.tv_nsec += 1;
  long result = clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &t, NULL);
  return result;
}
static long do_nanosleep(int fd) { (void)fd; return slept(nanosleep_2); }
static long do_clock_nanosleep(int fd) { (void)fd; return slept(clock_2); }
static long do_clock_absolute(int fd) { (void)fd; return clock_absolute_2(); }
static long do_futex(int fd) { (void)fd; return syscall(SYS_futex, &futex_word, FUTEX_WAIT, 0, NULL, NULL, 0); }
static long do_futex_timed(int fd) {
  struct timespec t = {60, 0};
  (void)fd;
  return syscall(SYS_futex, &futex_word, FUTEX_WAIT, 0, &t, NULL, 0);
}
static long do_sem_wait(int fd) { (void)fd; return sem_wait(&semaphore); }
static long do_accept(int fd) { (void)fd; return accept(listeners[0], NULL, NULL) >= 0 ? 0 : -1; }
static long do_accept_timeout(int fd) { (void)fd; return accept(listeners[1], NULL, NULL) >= 0 ? 0 : -1; }
static long do_recv(int fd) { (void)fd; return recv(pairs[0][0], &byte, 1, 0); }
static long do_recv_timeout(int fd) { (void)fd; return recv(pairs[1][0], &byte, 1, 0); }
static long do_recvmsg(int fd) {
  struct iovec part = {&byte, 1};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
  (void)fd;
  return recvmsg(pairs[2][0], &message, 0);
}
static long do_sigwaitinfo(int fd) {
  sigset_t set;
  siginfo_t info;
  (void)fd;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  return sigwaitinfo(&set, &info);
}
static void nothing(int signal) { (void)signal; }
static long do_pause(int fd) { (void)fd; long r = pause(); pause_done = 1; return r; }
static long do_sigsuspend(int fd) {
  sigset_t mask;
  (void)fd;
  sigfillset(&mask);
  sigdelset(&mask, SIGHUP);
  long r = sigsuspend(&mask);
  suspend_done = 1;
  return r;
}
static long do_semop(int fd) { struct sembuf op = {0, -1, 0}; (void)fd; return semop(sem_id, &op, 1); }
static long do_semtimedop(int fd) {
  struct sembuf op = {1, -1, 0};
  struct timespec t = {60, 0};
  (void)fd;
  return semtimedop(sem_id, &op, 1, &t);
}
struct note { long type; char text[8]; };
static long do_msgrcv(int fd) { struct note n; (void)fd; return msgrcv(queue_id, &n, sizeof n.text, 1, 0); }
static long do_wait4(int fd) { (void)fd; return waitpid(child, NULL, 0) == child ? 0 : -1; }
static long do_waitid(int fd) { siginfo_t i; (void)fd; return waitid(P_PID, (id_t)child_for_pidfd, &i, WEXITED); }
static long do_flock(int fd) { (void)fd; int f = open(lock_path, O_RDWR); return flock(f, LOCK_EX); }
static long do_inotify(int fd) { char space[4096]; (void)fd; return read(notify_fd, space, sizeof space) > 0 ? 0 : -1; }
static long do_open_fifo(int fd) { char name[64]; (void)fd; snprintf(name, sizeof name, "%s.fifo", lock_path); return open(name, O_RDONLY) >= 0 ? 0 : -1; }

static struct { const char *name; long (*call)(int); } calls[] = {
    {"read", do_read_pipe}, {"poll", do_poll}, {"poll_endless", do_poll_endless}, {"ppoll", do_ppoll},
    {"select", do_select}, {"epoll_wait", do_epoll_wait}, {"epoll_endless", do_epoll_endless},
    {"epoll_pwait", do_epoll_pwait}, {"eventfd", do_eventfd}, {"timerfd", do_timerfd},
    {"nanosleep", do_nanosleep}, {"clock_nanosleep", do_clock_nanosleep}, {"clock_absolute", do_clock_absolute},
    {"futex", do_futex}, {"futex_timed", do_futex_timed}, {"sem_wait", do_sem_wait}, {"accept", do_accept},
    {"accept_timeout", do_accept_timeout}, {"recv", do_recv}, {"recv_timeout", do_recv_timeout},
    {"recvmsg", do_recvmsg}, {"sigwaitinfo", do_sigwaitinfo}, {"pause", do_pause}, {"sigsuspend", do_sigsuspend},
    {"semop", do_semop}, {"semtimedop", do_semtimedop}, {"msgrcv", do_msgrcv}, {"wait4", do_wait4},
    {"waitid", do_waitid}, {"flock", do_flock}, {"inotify", do_inotify}, {"open_fifo", do_open_fifo},
};
#define COUNT (sizeof calls / sizeof *calls)
static struct { pthread_t thread; int fd; long result; int error; } state[COUNT];

static void *run(void *row) {
  size_t i = (size_t)row;
  errno = 0;
  state[i].result = calls[i].call(state[i].fd);
  state[i].error = errno;
  return NULL;
}

static void listener(int i, int timeout) {
  socklen_t size = sizeof addresses[i];
  listeners[i] = socket(AF_INET, SOCK_STREAM, 0);
  addresses[i].sin_family = AF_INET;
  addresses[i].sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(listeners[i], (void *)&addresses[i], size) || listen(listeners[i], 1)) abort();
  getsockname(listeners[i], (void *)&addresses[i], &size);
  struct timeval t = {60, 0};
  if (timeout) setsockopt(listeners[i], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
}

static pid_t child_until_eof(int *write_end) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC)) abort();
  pid_t pid = fork();
  if (!pid) {
    close(ends[1]);
    _exit((int)read(ends[0], &byte, 1));
  }
  close(ends[0]);
  *write_end = ends[1];
  return pid;
}

int main(void) {
  int ends[2];
  char name[64];
  sigset_t usr2;
  sigemptyset(&usr2);
  sigaddset(&usr2, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &usr2, NULL);
  struct sigaction action = {.sa_handler = nothing};
  sigaction(SIGUSR1, &action, NULL);
  sigaction(SIGHUP, &action, NULL);
  child = child_until_eof(&ends[0]);
  child_for_pidfd = child_until_eof(&ends[1]);
  event_fd = eventfd(0, 0);
  sem_init(&semaphore, 0, 0);
  sem_id = semget(IPC_PRIVATE, 2, 0600);
  queue_id = msgget(IPC_PRIVATE, 0600);
  lock_holder = mkstemp(lock_path);
  flock(lock_holder, LOCK_EX);
  snprintf(name, sizeof name, "%s.fifo", lock_path);
  if (mkfifo(name, 0600)) abort();
  notify_fd = inotify_init();
  inotify_add_watch(notify_fd, lock_path, IN_MODIFY);
  listener(0, 0);
  listener(1, 1);
  for (int i = 0; i < 3; i++) if (socketpair(AF_UNIX, SOCK_STREAM, 0, pairs[i])) abort();
  struct timeval t = {60, 0};
  setsockopt(pairs[1][0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 64 << 10);
  for (size_t i = 0; i < COUNT; i++) {
    state[i].fd = i < 8 ? new_pipe() : -1;
    pthread_create(&state[i].thread, &small, run, (void *)i);
    if (calls[i].call == do_pause) pausing = state[i].thread;
    if (calls[i].call == do_sigsuspend) suspending = state[i].thread;
    if (calls[i].call == do_sigwaitinfo) waiting = state[i].thread;
  }
  printf("%zu threads\n", COUNT);
  fflush(stdout);
  if (read(0, &byte, 1) != 1) return 3; /* the test's own blocking call, checked as well */
  for (int i = 0; i < next_pipe; i++) if (write(pipes[i][1], "x", 1) != 1) return 4;
  uint64_t one = 1;
  if (write(event_fd, &one, 8) != 8) return 4;
  futex_word = 1;
  syscall(SYS_futex, &futex_word, FUTEX_WAKE, 100, NULL, NULL, 0);
  sem_post(&semaphore);
  for (int i = 0; i < 2; i++) connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&addresses[i], sizeof addresses[i]);
  for (int i = 0; i < 3; i++) if (write(pairs[i][1], "x", 1) != 1) return 4;
  pthread_kill(waiting, SIGUSR2);
  pthread_kill(pausing, SIGUSR1);
  pthread_kill(suspending, SIGHUP);
  struct sembuf ops[2] = {{0, 1, 0}, {1, 1, 0}};
  semop(sem_id, ops, 2);
  struct note note = {1, "1234567"};
  msgsnd(queue_id, &note, sizeof note.text, 0);
  close(ends[0]);
  close(ends[1]);
  if (write(lock_holder, "x", 1) != 1) return 4;
  flock(lock_holder, LOCK_UN);
  close(open(name, O_WRONLY));
  for (size_t i = 0; i < COUNT; i++) {
    pthread_join(state[i].thread, NULL);
    printf("%s %ld %s\n", calls[i].name, state[i].result, state[i].result == -1 ? strerrorname_np(state[i].error) : "-");
  }
  unlink(name);
  unlink(lock_path);
  semctl(sem_id, 0, IPC_RMID);
  msgctl(queue_id, IPC_RMID, NULL);
  return 0;
}
