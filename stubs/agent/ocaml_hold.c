/* A program that is started again is held at the entry of one of its units, until a work that waits for a safe point
 * may have it: everything up to there is initialised, and nothing behind it has run.
 *
 * The first bytes of the unit's entry become a jump to here, before main. Whoever comes first puts them back, waits,
 * and runs the entry. Nothing else runs meanwhile: initialisers run one after the other, and no code of a unit is
 * called before its own.
 */
#define _GNU_SOURCE
#include "ocaml.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define JUMP_SIZE 12 /* mov $to, %rax; jmp *%rax */

enum { NOT, AWAITED, HELD }; /* state */

static struct {
  uint8_t *entry;
  uint8_t bytes[JUMP_SIZE];
  uint64_t limit_ms;
  uint32_t state;
} hold;

int reloader_caml_is_held(void) { return __atomic_load_n(&hold.state, __ATOMIC_SEQ_CST) == HELD; }

static int write_code(uint8_t *at, const uint8_t *bytes) {
  int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
  if (fd < 0) return -1;
  ssize_t size = pwrite(fd, bytes, JUMP_SIZE, (off_t)(uintptr_t)at);
  int error = errno;
  close(fd);
  errno = error;
  return size == JUMP_SIZE ? 0 : -1;
}

/* An entry takes nothing and owes its caller the registers that C keeps as well. The stack is aligned anew. */
__asm__(
    ".text\n"
    ".type reloader_caml_held_entry, @function\n"
    "reloader_caml_held_entry:\n"
    "  pushq %rbp\n"
    "  movq %rsp, %rbp\n"
    "  andq $-16, %rsp\n"
    "  call reloader_caml_held\n"
    "  leave\n"
    "  jmp *%rax\n"
    ".size reloader_caml_held_entry, . - reloader_caml_held_entry\n");
void reloader_caml_held_entry(void);

__attribute__((used)) uint8_t *reloader_caml_held(void) {
  int saved_errno = errno;
  if (write_code(hold.entry, hold.bytes)) _exit(127); /* it could be written before */
  uint64_t until = reloader_caml_now_us() / 1000 + hold.limit_ms;
  uint32_t awaited = AWAITED;
  __atomic_compare_exchange_n(&hold.state, &awaited, HELD, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  while (reloader_caml_is_held()) {
    uint64_t now = reloader_caml_now_us() / 1000;
    if (now >= until) break;
    struct timespec left = {(time_t)((until - now) / 1000), (long)((until - now) % 1000) * 1000000};
    syscall(SYS_futex, &hold.state, FUTEX_WAIT_PRIVATE, HELD, &left, NULL, 0);
  }
  errno = saved_errno;
  return hold.entry;
}

/* Before main only. With no entry: let it go on. */
uint64_t reloader_caml_hold(const uint64_t *args) {
  uint8_t jump[JUMP_SIZE] = {0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0};
  uint64_t to = (uint64_t)reloader_caml_held_entry;
  if (!args[0]) {
    reloader_caml_let_go();
    return 0;
  }
  if (!reloader_caml.family || CAML_VARIABLE(volatile int64_t, caml_globals_inited)) {
    errno = EBUSY;
    return (uint64_t)-1;
  }
  memcpy(jump + 2, &to, sizeof to);
  hold.entry = (uint8_t *)args[0];
  hold.limit_ms = args[1];
  memcpy(hold.bytes, hold.entry, JUMP_SIZE);
  __atomic_store_n(&hold.state, AWAITED, __ATOMIC_SEQ_CST);
  return (uint64_t)write_code(hold.entry, jump);
}

void reloader_caml_let_go(void) {
  if (__atomic_exchange_n(&hold.state, NOT, __ATOMIC_SEQ_CST) != HELD) return;
  syscall(SYS_futex, &hold.state, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}
