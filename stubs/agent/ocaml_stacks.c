/* Where OCaml code will return to: a unit whose code is under way must not be forgotten, or the collector would
 * not find its way over that frame. Frames are walked as the runtime does it, since what was left in them by
 * calls that have returned would hold a unit for as long as nobody overwrites it.
 */
#define _GNU_SOURCE
#include "ocaml.h"

#include <stddef.h>

#define CHUNK_HEADER 32 /* bytes: where C called OCaml, 5.x */

struct frame { /* a frame's descriptor */
  uint64_t return_addr;
  uint16_t size_and_flags, live;
  uint16_t live_offsets[];
};
#define HAS_DEBUG 1u
#define HAS_ALLOCATIONS 2u
#define RETURNS_TO_C 0xFFFFu

static void scan_rest(const uint64_t *word, const uint64_t *end, reloader_caml_look look) {
  for (; word < end; word++) look(*word, RELOADER_CAML_STACK, (uint64_t)word);
}

/* Up to where C called, and on with the OCaml code that called that C code. */
static char *scan_chunk(char *sp, const char *end, void *table, reloader_caml_look look) {
  uint64_t *slot = (uint64_t *)sp;
  for (sp += 8;; slot = (uint64_t *)sp - 1) {
    look(*slot, RELOADER_CAML_STACK, (uint64_t)slot);
    const struct frame *frame = CAML(void *, caml_find_frame_descr, void *, uint64_t)(table, *slot);
    if (!frame) {
      scan_rest(slot, (const uint64_t *)end, look);
      return NULL;
    }
    if (frame->size_and_flags == RETURNS_TO_C) return sp + CHUNK_HEADER;
    sp += frame->size_and_flags & ~3u;
  }
}

void reloader_caml_scan_fiber(const struct caml_stack *stack, reloader_caml_look look) {
  void *table = CAML(void *, caml_get_frame_descrs, void)();
  for (; stack; stack = stack->handler->parent) {
    char *sp = (char *)stack->sp;
    while (sp && sp != (char *)stack->handler) sp = scan_chunk(sp, (char *)stack->handler, table, look);
  }
}

static void scan_frames_4(char *sp, uint64_t pc, reloader_caml_look look) {
  while (sp) {
    const char *at = sp;
    const struct frame *frame = CAML(void *, caml_next_frame_descriptor, uint64_t *, char **)(&pc, &sp);
    if (!frame) return;
    look(frame->return_addr, RELOADER_CAML_STACK, (uint64_t)at);
  }
}

/* Systhreads' records of a domain's threads are a ring, of which its own hook for roots shows the one that runs:
 * by two roots first of all, at the record's beginning and at its exception. */

static caml_value *shown[2];
static int shown_count;

static void note_root_4(caml_value v, caml_value *root) {
  (void)v;
  if (shown_count < 2) shown[shown_count++] = root;
}

static void note_root_5(void *data, caml_value v, caml_value *root) {
  (void)data;
  note_root_4(v, root);
}

/* Returns the record of the thread that runs, NULL if there is none. What is saved in it is stale. */
static char *running_thread(uint64_t *domain) {
  uint64_t hook = CAML_VARIABLE(uint64_t, caml_scan_roots_hook);
  shown_count = 0;
  if (!hook || !reloader_caml_has_threads()) return NULL;
  if (reloader_caml.family == 4)
    ((void (*)(void (*)(caml_value, caml_value *)))hook)(note_root_4);
  else
    ((void (*)(void (*)(void *, caml_value, caml_value *), int, void *, uint64_t *))hook)(note_root_5, 0, NULL, domain);
  int is_record = shown_count == 2 && (char *)shown[1] - (char *)shown[0] == reloader_caml.fields->thread_exception;
  return is_record ? (char *)shown[0] : NULL;
}

static char *next_thread(const char *record) { return *(char *const *)(record + 8); }

void reloader_caml_scan_domain(uint64_t *domain, reloader_caml_look look) {
  const struct caml_fields *fields = reloader_caml.fields;
  char *running = running_thread(domain);
  if (reloader_caml.family == 5)
    reloader_caml_scan_fiber((const struct caml_stack *)domain[fields->current_stack], look);
  else
    scan_frames_4((char *)domain[fields->bottom_of_stack], domain[fields->last_return], look);
  for (char *thread = running ? next_thread(running) : NULL; thread != running; thread = next_thread(thread)) {
    uint64_t *saved = (uint64_t *)(thread + fields->thread_stack);
    if (reloader_caml.family == 5)
      reloader_caml_scan_fiber((const struct caml_stack *)saved[0], look);
    else
      scan_frames_4((char *)saved[0], saved[1], look);
  }
}

/* Backtraces that nobody has asked for yet would be read from a forgotten unit's frametable. */

static int (*is_forgotten)(uint64_t word);

static void cut_backtrace(uint64_t *buffer, uint32_t *count) {
  uint32_t kept = 0;
  if (!buffer) return;
  for (uint32_t i = 0; i < *count; i++)
    if (!is_forgotten(buffer[i] & ~3ull)) buffer[kept++] = buffer[i];
  *count = kept;
}

static void cut_domain(uint64_t *domain) {
  const struct caml_fields *fields = reloader_caml.fields;
  char *running = running_thread(domain);
  cut_backtrace((uint64_t *)domain[fields->backtrace_buffer], (uint32_t *)&domain[fields->backtrace_pos]);
  for (char *thread = running ? next_thread(running) : NULL; thread != running; thread = next_thread(thread))
    cut_backtrace(*(uint64_t **)(thread + fields->thread_buffer), (uint32_t *)(thread + fields->thread_pos));
}

/* Inside of a stop. */
void reloader_caml_cut_backtraces(int (*forgotten)(uint64_t word)) {
  is_forgotten = forgotten;
  reloader_caml_each_domain(cut_domain);
}

/* The end of a unit's frametable and of the debug information that it leads to, as far as backtraces point. */

static uint64_t align(uint64_t at, uint64_t to) { return (at + to - 1) & ~(to - 1); }

uint64_t reloader_caml_frametable_end(const uint64_t *table) {
  uint64_t at = (uint64_t)(table + 1), end = at;
  for (uint64_t left = table[0]; left; left--) {
    const struct frame *frame = (const struct frame *)at;
    uint64_t infos = 1;
    at = (uint64_t)&frame->live_offsets[frame->live];
    if (frame->size_and_flags & HAS_ALLOCATIONS) {
      infos = *(const uint8_t *)at;
      at += infos + 1;
    }
    if (frame->size_and_flags & HAS_DEBUG) {
      at = align(at, 4);
      for (; infos; infos--, at += 4) {
        uint64_t info = at + (uint64_t)(int64_t)*(const int32_t *)at;
        if (info != at && info + 8 > end) end = info + 8;
      }
    }
    at = align(at, 8);
  }
  return at > end ? at : end;
}
