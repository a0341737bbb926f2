/* Load on a server: load http|memcached SOCKET THREADS PAUSE_US KEYS
 *
 * Each thread has one connection and one request at a time, PAUSE_US apart. `ready` is printed once all have made
 * their first; at the end of stdin the counts and the times of the answers in microseconds:
 *   requests errors lost p50 p99 p99.9 longest
 * http asks for `/` and wants status 200 and the body `hello`. memcached writes and reads KEYS keys a thread: a value
 * that is not the last one written is lost, and at the end every key is read once more. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MOST_THREADS = 64, MOST_KEYS = 4096, ROOM = 4096 };

struct client {
  pthread_t thread;
  int number, connection;
  long requests, errors, lost, room;
  unsigned *times;
  unsigned written[MOST_KEYS];
  unsigned random;
  char answer[ROOM];
};

static const char *path;
static int is_http, thread_count, key_count;
static long pause_us;
static volatile int stopping;
static pthread_barrier_t first;

static long now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000L + t.tv_nsec / 1000;
}

static int connected(void) {
  struct sockaddr_un name = {.sun_family = AF_UNIX};
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  snprintf(name.sun_path, sizeof name.sun_path, "%s", path);
  return connect(fd, (struct sockaddr *)&name, sizeof name) ? -1 : fd;
}

/* Send a request and read until the answer ends as it must; return whether it came. */
static int ask(struct client *self, const char *request, const char *end) {
  size_t have = 0, size = strlen(request), tail = strlen(end);
  if (self->connection < 0) self->connection = connected();
  if (self->connection < 0 || send(self->connection, request, size, MSG_NOSIGNAL) != (ssize_t)size) goto failed;
  while (have < tail || memcmp(self->answer + have - tail, end, tail)) {
    ssize_t got = have < ROOM - 1 ? read(self->connection, self->answer + have, ROOM - 1 - have) : 0;
    if (got <= 0) goto failed;
    have += (size_t)got;
  }
  self->answer[have] = 0;
  return 1;
failed:
  if (self->connection >= 0) close(self->connection);
  self->connection = -1;
  return 0;
}

static int get_page(struct client *self) {
  if (!ask(self, "GET / HTTP/1.1\r\nHost: load\r\n\r\n", "hello\n")) return 0;
  return !strncmp(self->answer, "HTTP/1.1 200 ", 13);
}

static int set_key(struct client *self, int key) {
  char request[128], value[32];
  int size = snprintf(value, sizeof value, "%d:%u", key, self->written[key] + 1);
  snprintf(request, sizeof request, "set k%d_%d 0 0 %d\r\n%s\r\n", self->number, key, size, value);
  if (!ask(self, request, "\r\n") || strcmp(self->answer, "STORED\r\n")) return 0;
  self->written[key]++;
  return 1;
}

static int get_key(struct client *self, int key) {
  char request[64], wanted[128], value[32];
  int size = snprintf(value, sizeof value, "%d:%u", key, self->written[key]);
  snprintf(request, sizeof request, "get k%d_%d\r\n", self->number, key);
  snprintf(wanted, sizeof wanted, "VALUE k%d_%d 0 %d\r\n%s\r\nEND\r\n", self->number, key, size, value);
  if (!ask(self, request, "END\r\n")) return 0;
  self->lost += strcmp(self->answer, wanted) != 0;
  return 1;
}

static int one(struct client *self) {
  if (is_http) return get_page(self);
  self->random = self->random * 1103515245u + 12345u;
  int key = (int)(self->random >> 8) % key_count;
  return self->random >> 30 ? get_key(self, key) : set_key(self, key);
}

static void measure(struct client *self) {
  long begun = now_us();
  int good = one(self);
  long took = now_us() - begun;
  if (self->requests == self->room) {
    self->room = self->room ? 2 * self->room : 1 << 16;
    self->times = realloc(self->times, (size_t)self->room * sizeof *self->times);
  }
  self->times[self->requests++] = (unsigned)took;
  self->errors += !good;
}

static void *work(void *data) {
  struct client *self = data;
  struct timespec wait = {0, pause_us * 1000};
  prctl(PR_SET_TIMERSLACK, 1000);
  for (int key = 0; key < key_count && !is_http; key++) self->errors += !set_key(self, key);
  measure(self);
  pthread_barrier_wait(&first);
  while (!stopping) {
    measure(self);
    if (pause_us) nanosleep(&wait, NULL);
  }
  for (int key = 0; key < key_count && !is_http; key++) self->errors += !get_key(self, key);
  return NULL;
}

static int compare(const void *a, const void *b) {
  unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;
  return (x > y) - (x < y);
}

int main(int count, char **arguments) {
  static struct client clients[MOST_THREADS];
  long requests = 0, errors = 0, lost = 0, at = 0;
  if (count != 6) return 2;
  is_http = !strcmp(arguments[1], "http");
  path = arguments[2];
  thread_count = atoi(arguments[3]);
  pause_us = atol(arguments[4]);
  key_count = atoi(arguments[5]);
  if (thread_count < 1 || thread_count > MOST_THREADS || key_count > MOST_KEYS) return 2;
  pthread_barrier_init(&first, NULL, (unsigned)thread_count + 1);
  for (int i = 0; i < thread_count; i++) {
    clients[i].number = i;
    clients[i].random = (unsigned)i;
    clients[i].connection = -1;
    if (pthread_create(&clients[i].thread, NULL, work, &clients[i])) return 1;
  }
  pthread_barrier_wait(&first);
  puts("ready");
  fflush(stdout);
  while (getchar() != EOF) continue;
  stopping = 1;
  for (int i = 0; i < thread_count; i++) {
    pthread_join(clients[i].thread, NULL);
    requests += clients[i].requests;
    errors += clients[i].errors;
    lost += clients[i].lost;
  }
  unsigned *times = malloc((size_t)requests * sizeof *times);
  for (int i = 0; i < thread_count; i++) {
    memcpy(times + at, clients[i].times, (size_t)clients[i].requests * sizeof *times);
    at += clients[i].requests;
  }
  qsort(times, (size_t)requests, sizeof *times, compare);
  printf("%ld %ld %ld %u %u %u %u\n", requests, errors, lost, times[requests / 2], times[requests * 99 / 100],
         times[requests * 999 / 1000], times[requests - 1]);
  return 0;
}
