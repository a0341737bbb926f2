/* Much memory, slowly written, and everything that a program may do to protected pages. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#define K 0x5a5a5a5a5a5a5a5aul
#define PAGE 4096ul
static unsigned long secret, size;
static char *heap, *page, *shared, *small;
static volatile int leave;
static pthread_t threads[64];
static int count;
#define CHECK(fact) do { if (!(fact)) { printf("line %d: %s (errno %d)\n", __LINE__, #fact, errno); return; } } while (0)
#define HIDE(where) (*(volatile unsigned long *)(where) = secret ^ K)

static char *map(unsigned long bytes, int flags) { return mmap(0, bytes, 3, flags | MAP_ANONYMOUS, -1, 0); }
static void *write_slowly(void *unused)
{
    for (unsigned long at = 0; !leave; at = (at + PAGE) % size) { heap[at + 100]++; usleep(200); }
    return unused;
}
static void *spin(void *unused)
{
    while (!leave) __asm__ volatile("pause");
    return unused;
}
static volatile int handled;
static void handler(int number) { volatile char room[5000]; room[0] = (char)number; handled += room[0]; }
static void *small_thread(void *room) { volatile char mine[100]; mine[3] = 7; *(char *)room = mine[3]; return room; }

/* What the kernel writes, and what a program does to its mappings; every page is protected before. */
static void reads(void)
{
    int p[2], s[2];
    char *at = page;
    struct iovec parts[3] = {{at + PAGE - 2, 4}, {at + 4 * PAGE, 3}, {at + 6 * PAGE - 1, 2}};
    CHECK(!pipe(p) && !socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    CHECK(write(p[1], "123456789", 9) == 9 && readv(p[0], parts, 3) == 9);
    CHECK(!memcmp(at + PAGE - 2, "1234", 4) && at[4 * PAGE] == '5' && at[6 * PAGE] == '9');
    CHECK(write(s[1], "abcdef", 6) == 6 && recv(s[0], at + 8 * PAGE, 6, 0) == 6 && at[8 * PAGE + 5] == 'f');
    CHECK(getcwd(at + 9 * PAGE, 4000) && at[9 * PAGE] == '/');
    CHECK(!pipe((int *)(at + 10 * PAGE)));
    int zero = open("/dev/zero", O_RDONLY);
    CHECK(zero >= 0 && read(zero, at + 11 * PAGE, 20 * PAGE) == (long)(20 * PAGE) && !at[15 * PAGE]);
    unsigned length = sizeof(int);
    CHECK(!getsockopt(s[0], SOL_SOCKET, SO_TYPE, at + 32 * PAGE, &length) && *(int *)(at + 32 * PAGE) == SOCK_STREAM);
    struct iovec from = {"remote", 6}, to = {at + 33 * PAGE, 6};
    CHECK(process_vm_writev(getpid(), &from, 1, &to, 1, 0) == 6 && at[33 * PAGE + 5] == 'e');
    puts("fine");
}
static void maps(void)
{
    char *at = page;
    CHECK(!mprotect(at, 4 * PAGE, PROT_READ) && !mprotect(at, 4 * PAGE, 3) && (at[1] = 5) == 5);
    CHECK(!munmap(at + 4 * PAGE, PAGE));
    CHECK(mmap(at + 4 * PAGE, PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at + 4 * PAGE);
    CHECK(!at[4 * PAGE] && (at[4 * PAGE] = 3) == 3);
    char *moved = mremap(at + 8 * PAGE, 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED && moved[1] == 9 && (moved[7 * PAGE] = 1) == 1 && (moved[1] = 2) == 2);
    CHECK(mremap(moved, 8 * PAGE, 2 * PAGE, 0) == moved && moved[1] == 2);
    CHECK(!madvise(at + 12 * PAGE, PAGE, MADV_DONTNEED) && !at[12 * PAGE + 1] && (at[12 * PAGE] = 1) == 1);
    CHECK(!madvise(at + 13 * PAGE, PAGE, MADV_FREE) && (at[13 * PAGE + 1] = 8) == 8);
    CHECK(!madvise(at, 4 * PAGE, MADV_HUGEPAGE) && !madvise(at, 4 * PAGE, MADV_NOHUGEPAGE));
    CHECK(!mlock(at + 14 * PAGE, PAGE) && !munlock(at + 14 * PAGE, PAGE));
    char *end = sbrk(64 * PAGE);
    CHECK(end != (void *)-1 && (end[5 * PAGE] = 4) == 4);
    char *grown = realloc(malloc(1 << 20), 8 << 20);
    CHECK(grown);
    for (unsigned long size = 8; size < 64; size += 8) CHECK((grown = realloc(grown, size << 20)) && (grown[size - 8] = 1));
    free(grown);
    int status = 1, child = fork();
    if (!child) {
        for (int i = 16; i < 30; i++) if (at[i * PAGE + 1] != 9) _exit(2); else at[i * PAGE + 1] = 1;
        _exit(0);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child && !status && at[20 * PAGE + 1] == 9);
    at[20 * PAGE + 1] = 8;
    stack_t stack = {.ss_sp = at + 32 * PAGE, .ss_size = 16 * PAGE}, off = {.ss_flags = SS_DISABLE};
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
    CHECK(!sigaltstack(&stack, 0) && !sigaction(SIGUSR1, &action, 0));
    raise(SIGUSR1);
    CHECK(handled == SIGUSR1 && !sigaltstack(&off, 0));
    pthread_attr_t how;
    pthread_t thread;
    CHECK(!pthread_attr_init(&how) && !pthread_attr_setstack(&how, at + 48 * PAGE, 16 * PAGE));
    CHECK(!pthread_create(&thread, &how, small_thread, at + 31 * PAGE) && !pthread_join(thread, 0));
    CHECK(at[31 * PAGE] == 7 && mmap(at + 8 * PAGE, 4 * PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
    puts("fine");
}
static void answer(const char *what)
{
    if (!strcmp(what, "reads")) return reads();
    if (!strcmp(what, "maps")) return maps();
    if (!strcmp(what, "fresh"))
        for (unsigned long at = 0; at < 64 * PAGE; at += PAGE) page[at + 1] = 9;
    if (!strcmp(what, "dirty"))
        for (unsigned long at = 0; at < size; at += PAGE) heap[at]++;
    if (!strcmp(what, "slow")) pthread_create(threads + count++, 0, write_slowly, 0);
    if (!strcmp(what, "spin")) while (count < 64) pthread_create(threads + count++, 0, spin, 0);
    if (!strcmp(what, "heap")) HIDE(heap + size / 2);
    if (!strcmp(what, "kernel")) {
        int p[2];
        unsigned long word = secret ^ K;
        if (!pipe(p) && write(p[1], &word, 8) == 8 && read(p[0], heap + size / 4, 8) == 8) word = 0;
        __asm__ volatile("" :: "r"(&word) : "memory");
    }
    if (!strcmp(what, "new")) HIDE(map(8 * PAGE, MAP_PRIVATE) + PAGE);
    if (!strcmp(what, "moved")) HIDE(mremap(page, 4 * PAGE, 128 * PAGE, MREMAP_MAYMOVE) + PAGE);
    if (!strcmp(what, "hidden")) { HIDE(page + 64); mprotect(page, PAGE, 0); }
    if (!strcmp(what, "brk")) HIDE((char *)sbrk(2 * PAGE) + 64);
    if (!strcmp(what, "shared")) HIDE(shared + 6 * PAGE);
    if (!strcmp(what, "small")) HIDE(small + 64);
    if (!strcmp(what, "again")) { munmap(page, 4 * PAGE); page = mmap(page, 4 * PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0); HIDE(page + PAGE); }
    puts("done");
}
int main(int argc, char **argv)
{
    char line[80];
    setvbuf(stdout, 0, _IOLBF, 0);
    size = argc > 1 ? strtoul(argv[1], 0, 0) << 20 : 16ul << 20;
    heap = map(size, MAP_PRIVATE);
    for (unsigned long at = 0; at < size; at += 64) heap[at] = (char)at;
    page = map(64 * PAGE, MAP_PRIVATE);
    answer("fresh");
    if (argc > 2) { shared = map(8 << 20, MAP_SHARED); memset(shared, 1, 8 << 20); }
    small = map(PAGE, MAP_SHARED);
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (*line == '=') { secret = strtoul(line + 1, 0, 0); puts("done"); }
        else answer(line);
    }
    leave = 1;
    while (count) pthread_join(threads[--count], 0);
    return 0;
}
