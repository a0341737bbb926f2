/* Units that were loaded: what the runtime has to know of each, and how it forgets them again. */
#define _GNU_SOURCE
#include "ocaml.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define STATIC_DATA 4
#define DIGEST_LATER 0
#define ROOTS_ROOM 4 /* words of the usual table: one block and the end */

struct caml_unit *reloader_caml_units;
uint64_t reloader_caml_unit_count;

static int64_t empty_frametable[1];
static int empty_is_listed;
static caml_value **spare_roots; /* tables of retired units; the runtime still has them, empty */
static uint64_t spare_count, spare_capacity;

struct caml_unit *reloader_caml_unit(uint64_t code_begin) {
  for (uint64_t i = 0; i < reloader_caml_unit_count; i++)
    if (reloader_caml_units[i].live && reloader_caml_units[i].code_begin == code_begin) return &reloader_caml_units[i];
  return NULL;
}

/* Out of memory in the midst of a change is the end, as it is for the runtime itself. */
static void *resize(void *memory, uint64_t size) {
  void *bigger = realloc(memory, size);
  if (!bigger) abort();
  return bigger;
}

static struct caml_unit *new_unit(void) {
  for (uint64_t i = 0; i < reloader_caml_unit_count; i++)
    if (!reloader_caml_units[i].live) return &reloader_caml_units[i];
  uint64_t count = reloader_caml_unit_count + 1;
  if (!(count & (count - 1))) reloader_caml_units = resize(reloader_caml_units, 2 * count * sizeof(struct caml_unit));
  reloader_caml_unit_count = count;
  return &reloader_caml_units[count - 1];
}

/* No version can remove a table of roots again: it is emptied instead, and used for the next unit. */
static caml_value *add_roots(const caml_value *roots) {
  uint64_t count = 0;
  while (roots[count]) count++;
  if (count < ROOTS_ROOM && spare_count) {
    caml_value *table = spare_roots[--spare_count];
    memcpy(table, roots, (count + 1) * 8);
    return table;
  }
  caml_value *table = resize(NULL, (count < ROOTS_ROOM ? ROOTS_ROOM : count + 1) * 8);
  memcpy(table, roots, (count + 1) * 8);
  if (reloader_caml.family == 4)
    CAML(void, caml_register_dyn_global, void *)(table);
  else
    CAML(void, caml_register_dyn_globals, void **, int)((void **)&table, 1);
  return table;
}

static void drop_roots(struct caml_unit *unit) {
  uint64_t count = 0;
  while (((const caml_value *)unit->gc_roots)[count]) count++;
  memset(unit->roots, 0, (count + 1) * 8);
  if (count >= ROOTS_ROOM) return;
  if (spare_count == spare_capacity) {
    spare_capacity = 2 * spare_capacity + 16;
    spare_roots = resize(spare_roots, spare_capacity * sizeof *spare_roots);
  }
  spare_roots[spare_count++] = unit->roots;
}

static void add_frametables(void **tables, uint64_t count) {
  if (reloader_caml.family == 5) {
    CAML(void, caml_register_frametables, void **, int)(tables, (int)count);
    return;
  }
  for (uint64_t i = 0; i < count; i++) CAML(void, caml_register_frametable, void *)(tables[i]);
  if (!empty_is_listed) return;
  CAML(void, caml_unregister_frametable, void *)(empty_frametable);
  empty_is_listed = 0;
}

/* 4.x: unregistering the first of the list is a use after free, so an empty one is put before it.
 * 5.x: it happens when the next one is registered. */
static void remove_frametables(struct caml_unit **units, uint64_t count) {
  void *empty = empty_frametable;
  if (reloader_caml.family == 4 && !empty_is_listed) {
    CAML(void, caml_register_frametable, void *)(empty);
    empty_is_listed = 1;
  }
  for (uint64_t i = 0; i < count; i++) CAML(void, caml_unregister_frametable, void *)((void *)units[i]->frametable);
  if (reloader_caml.family == 4) return;
  CAML(void, caml_register_frametables, void **, int)(&empty, 1);
  CAML(void, caml_unregister_frametable, void *)(empty);
}

static void add_unit(const uint64_t *words) {
  struct caml_unit *unit = new_unit();
  memset(unit, 0, sizeof *unit);
  memcpy(unit, words, 6 * 8);
  unit->frametable_end = reloader_caml_frametable_end((const uint64_t *)unit->frametable);
  if (unit->gc_roots) unit->roots = add_roots((const caml_value *)unit->gc_roots);
  if (reloader_caml.family == 4)
    CAML(int, caml_page_table_add, int, uint64_t, uint64_t)(STATIC_DATA, unit->data_begin, unit->data_end);
  if (unit->code_begin != unit->code_end) {
    int number = CAML(int, caml_register_code_fragment, uint64_t, uint64_t, int, void *)(
        unit->code_begin, unit->code_end, DIGEST_LATER, NULL);
    unit->fragment = CAML(void *, caml_find_code_fragment_by_num, int)(number);
  }
  unit->live = 1;
}

/* Register units, of each six words; on 5.x one stop of all domains does for all of them. */
void reloader_caml_register(const uint64_t *words, uint64_t count, uint64_t stride) {
  void *tables[64];
  for (uint64_t first = 0; first < count; first += 64) {
    uint64_t part = count - first < 64 ? count - first : 64;
    for (uint64_t i = 0; i < part; i++) tables[i] = (void *)words[(first + i) * stride];
    add_frametables(tables, part);
  }
  for (uint64_t i = 0; i < count; i++) add_unit(words + i * stride);
}

void reloader_caml_unregister(struct caml_unit **units, uint64_t count) {
  for (uint64_t i = 0; i < count; i++) {
    struct caml_unit *unit = units[i];
    if (unit->roots) drop_roots(unit);
    if (unit->fragment) CAML(void, caml_remove_code_fragment, void *)(unit->fragment);
    if (reloader_caml.family == 4)
      CAML(int, caml_page_table_remove, int, uint64_t, uint64_t)(STATIC_DATA, unit->data_begin, unit->data_end);
    unit->live = 0;
  }
  remove_frametables(units, count);
}
