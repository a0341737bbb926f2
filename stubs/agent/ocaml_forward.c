/* Kept state: old values in new places, and every pointer of the new unit to what they replace led to them.
 *
 * Copying alone is wrong: `let find = Hashtbl.find table` has captured the new table already. Old objects are
 * not entered: whatever they point to is old.
 */
#define _GNU_SOURCE
#include "ocaml.h"

#include <stddef.h>

struct walk {
  struct caml_map seen, replaced; /* replaced: new object -> the old one in its place */
  struct caml_list todo;
  uint64_t forwarded;
};

/* A place's word, or NULL if the blocks on the way to it are none or too small. */
caml_value *reloader_caml_place(const uint64_t *words) {
  caml_value block = words[0];
  for (uint64_t depth = words[1], i = 0; depth && depth <= 4; i++) {
    if (!CAML_IS_BLOCK(block) || !reloader_caml_is_value(block) || words[2 + i] >= CAML_SIZE(block)) return NULL;
    if (i + 1 == depth) return &CAML_FIELD(block, words[2 + i]);
    block = CAML_FIELD(block, words[2 + i]);
  }
  return NULL;
}

static caml_value whole(caml_value v) {
  return CAML_TAG(v) == CAML_INFIX_TAG ? v - CAML_SIZE(v) * 8 : v;
}

static void visit(struct walk *walk, caml_value v) {
  int is_new;
  reloader_caml_map_add(&walk->seen, whole(v), &is_new);
  if (is_new) reloader_caml_push(&walk->todo, whole(v));
}

static void look_at(struct walk *walk, caml_value *place) {
  caml_value v = *place;
  if (!CAML_IS_BLOCK(v) || !reloader_caml_is_value(v)) return;
  const uint64_t *old = reloader_caml_map_find(&walk->replaced, v);
  if (old) {
    CAML(void, caml_modify, caml_value *, caml_value)(place, *old);
    walk->forwarded++;
  } else {
    visit(walk, v);
  }
}

static void drain(struct walk *walk) {
  while (walk->todo.count) {
    caml_value v = walk->todo.words[--walk->todo.count];
    uint64_t tag = CAML_TAG(v), size = CAML_SIZE(v), i = 0;
    if (tag >= CAML_NO_SCAN_TAG || (tag == CAML_CONT_TAG && reloader_caml.family == 5)) continue;
    if (tag == CAML_CLOSURE_TAG) i = CAML_ENVIRONMENT(CAML_FIELD(v, 1));
    for (; i < size; i++) look_at(walk, &CAML_FIELD(v, i));
  }
}

static void minor_collection(void) {
  if (reloader_caml.family == 4)
    CAML(void, caml_empty_minor_heap, void)();
  else
    CAML(void, caml_empty_minor_heaps_once, void)();
}

/* What the old module knows was there before; the walk must not wander through the program's whole heap. */
static void skip_old(struct walk *walk, caml_value module) {
  int is_new;
  reloader_caml_map_add(&walk->seen, module, &is_new);
  for (uint64_t i = 0; is_new && i < CAML_SIZE(module); i++) {
    caml_value v = CAML_FIELD(module, i);
    if (CAML_IS_BLOCK(v) && reloader_caml_is_value(v)) reloader_caml_map_add(&walk->seen, whole(v), &(int){0});
  }
}

/* Returns 0, or -1 if a place does not exist; then nothing was done. */
int reloader_caml_keep(const uint64_t *rows, uint64_t count, uint64_t *forwarded) {
  struct walk walk = {.forwarded = 0};
  int is_new;
  if (!count) return 0;
  minor_collection();
  for (uint64_t i = 0; i < 2 * count; i++)
    if (!reloader_caml_place(rows + i * CAML_PLACE)) return -1;
  for (uint64_t i = 0; i < count; i++, rows += 2 * CAML_PLACE) {
    caml_value old = *reloader_caml_place(rows), *place = reloader_caml_place(rows + CAML_PLACE), new = *place;
    visit(&walk, rows[CAML_PLACE]);
    skip_old(&walk, rows[0]);
    if (old == new) continue;
    if (CAML_IS_BLOCK(old)) reloader_caml_map_add(&walk.seen, whole(old), &is_new);
    if (CAML_IS_BLOCK(old) && CAML_IS_BLOCK(new)) *reloader_caml_map_add(&walk.replaced, new, &is_new) = old;
    CAML(void, caml_modify, caml_value *, caml_value)(place, old);
  }
  if (walk.replaced.count) drain(&walk);
  *forwarded += walk.forwarded;
  reloader_caml_map_free(&walk.seen);
  reloader_caml_map_free(&walk.replaced);
  reloader_caml_list_free(&walk.todo);
  return 0;
}
