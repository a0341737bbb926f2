/* Symbol files for debuggers: gdb's JIT interface.
 *
 * A debugger stops at __jit_debug_register_code and reads the list. Both names stay hidden: it
 * finds them in the symbol table all the same, and a JIT compiler in the program keeps its own.
 * Only the agent's thread changes the list. An entry goes with the code that it describes: when
 * the pages are discarded, before anything else can get them.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

enum { NO_ACTION = 0, REGISTER = 1, UNREGISTER = 2 };

struct jit_code_entry {
  struct jit_code_entry *next, *prev;
  const char *symfile_addr;
  uint64_t symfile_size;
};

struct jit_descriptor {
  uint32_t version;
  uint32_t action_flag;
  struct jit_code_entry *relevant_entry, *first_entry;
};

struct jit_descriptor __jit_debug_descriptor = {1, NO_ACTION, NULL, NULL};

__attribute__((noinline, noclone)) void __jit_debug_register_code(void);
void __jit_debug_register_code(void) { __asm__ volatile("" ::: "memory"); }

/* The start is kept inverted: the word must not count as one that points into the code. */
struct described {
  struct jit_code_entry entry;
  uint64_t inverted_start, size;
  char file[];
};

static void tell(struct jit_code_entry *entry, uint32_t action) {
  __jit_debug_descriptor.relevant_entry = entry;
  __jit_debug_descriptor.action_flag = action;
  __jit_debug_register_code();
  __jit_debug_descriptor.action_flag = NO_ACTION;
  __jit_debug_descriptor.relevant_entry = NULL;
}

static int add(uint64_t start, uint64_t size, const char *file, uint64_t file_size) {
  void *room = mmap(NULL, sizeof(struct described) + file_size, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (room == MAP_FAILED) return -1;
  struct described *row = room;
  struct jit_code_entry *first = __jit_debug_descriptor.first_entry;
  memcpy(row->file, file, file_size);
  row->inverted_start = ~start;
  row->size = size;
  row->entry = (struct jit_code_entry){first, NULL, row->file, file_size};
  if (first) first->prev = &row->entry;
  __jit_debug_descriptor.first_entry = &row->entry;
  tell(&row->entry, REGISTER);
  return 0;
}

/* The text area holds {start and size of code, bytes of its symbol file, the file, filled up to eight}. */
uint64_t reloader_jit_register(uint64_t count, const char *text) {
  const char *end = text + RELOADER_TEXT_SIZE;
  for (uint64_t i = 0; i < count && text + 24 <= end; i++) {
    uint64_t head[3];
    memcpy(head, text, sizeof head);
    text += sizeof head;
    if (head[2] > (uint64_t)(end - text) || add(head[0], head[1], text, head[2])) return (uint64_t)-1;
    text += (head[2] + 7) & ~7ull;
  }
  return 0;
}

void reloader_jit_forget(uint64_t start, uint64_t size) {
  struct jit_code_entry *next;
  for (struct jit_code_entry *entry = __jit_debug_descriptor.first_entry; entry; entry = next) {
    struct described *row = (struct described *)entry;
    uint64_t begin = ~row->inverted_start;
    next = entry->next;
    if (begin >= start + size || start >= begin + row->size) continue;
    if (entry->prev) entry->prev->next = next;
    else __jit_debug_descriptor.first_entry = next;
    if (next) next->prev = entry->prev;
    tell(entry, UNREGISTER);
    munmap(row, sizeof *row + entry->symfile_size);
  }
}
