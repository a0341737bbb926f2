/* Which units nothing reaches any more: a mark from all roots but their own, and their retirement.
 *
 * A unit is held by a pointer to its data or code from a live block, a root or a return address, also by a raw
 * backtrace, whose slots are pointers with the lowest bit set, and by the keys of an ephemeron, which does not
 * keep them alive but looks at their headers. Units that are held have their own roots marked then, since they
 * may hold others; so does their code, whose calls the daemon tells. C stacks and registers are scanned by it, too.
 */
#define _GNU_SOURCE
#include "ocaml.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BETWEEN_LOOKS 4096 /* blocks, at the clock */

struct candidate {
  struct caml_unit *unit;
  uint64_t kind, holder, word; /* kind 0: nothing reaches it so far */
  uint32_t is_marked;          /* its own roots are marked */
  caml_value first_root;
};

/* One mark at a time: roots come by callbacks, and those of 4.x carry no data. */
static struct mark {
  const struct caml_wish *wish;
  struct candidate *candidates;
  uint64_t count;
  uint64_t low, high; /* all candidates are between */
  struct caml_map seen;
  struct caml_list todo;
  uint64_t deadline_us; /* 0: none; the program stands still meanwhile */
  int is_late;
  uint64_t *domain;
} mark;

static struct candidate *owner(uint64_t word) {
  if (word < mark.low || word >= mark.high) return NULL;
  for (uint64_t i = 0; i < mark.count; i++) {
    const struct caml_unit *unit = mark.candidates[i].unit;
    if (!unit) continue;
    if (word - unit->data_begin < unit->data_end - unit->data_begin) return &mark.candidates[i];
    if (word - unit->frametable < unit->frametable_end - unit->frametable) return &mark.candidates[i];
    if (word - unit->code_begin < unit->code_end - unit->code_begin) return &mark.candidates[i];
  }
  return NULL;
}

static void look_at_word(uint64_t word, uint64_t kind, uint64_t holder) {
  struct candidate *hit = owner(word);
  if (!hit || hit->kind) return;
  hit->kind = kind;
  hit->holder = holder;
  hit->word = word;
}

static void look_at(caml_value v, uint64_t kind, uint64_t holder) {
  if (!CAML_IS_BLOCK(v)) {
    look_at_word(v & ~3ull, RELOADER_CAML_BACKTRACE, holder); /* a frame's descriptor, or + 2 its debug information */
    return;
  }
  look_at_word(v, kind, holder);
  if (!v || !reloader_caml_is_value(v)) return;
  if (CAML_TAG(v) == CAML_INFIX_TAG) v -= CAML_SIZE(v) * 8;
  int is_new;
  reloader_caml_map_add(&mark.seen, v, &is_new);
  if (is_new) reloader_caml_push(&mark.todo, v);
}

/* Roots. */

static int is_static(uint64_t addr) {
  const struct reloader_region *data = &reloader_control->regions[RELOADER_DATA];
  return (addr >= reloader_control->exe_start && addr < reloader_control->exe_end) || addr - data->addr < data->size;
}

static uint64_t root_kind(uint64_t root) {
  const struct caml_fields *fields = reloader_caml.fields;
  if (is_static(root)) return RELOADER_CAML_GLOBAL;
  uint64_t here = (uint64_t)__builtin_frame_address(0);
  if (reloader_caml.family == 4)
    return root > here && root < mark.domain[fields->top_of_stack] ? RELOADER_CAML_STACK : RELOADER_CAML_C_ROOT;
  const struct caml_stack *stack = (const struct caml_stack *)mark.domain[fields->current_stack];
  return root > (uint64_t)stack && root < (uint64_t)stack->handler ? RELOADER_CAML_STACK : RELOADER_CAML_C_ROOT;
}

static void add_root(caml_value v, caml_value *root) {
  look_at(v, root_kind((uint64_t)root), (uint64_t)root);
}

static void add_root_5(void *data, caml_value v, caml_value *root) {
  (void)data;
  add_root(v, root);
}

static void add_roots(uint64_t *domain) {
  mark.domain = domain;
  reloader_caml_scan_domain(domain, look_at_word);
  if (reloader_caml.family == 4) {
    CAML(void, caml_do_roots, void (*)(caml_value, caml_value *), int)(add_root, 1);
    return;
  }
  typedef void (*action)(void *, caml_value, caml_value *);
  CAML(void, caml_do_roots, action, int, void *, uint64_t *, int)(add_root_5, 0, NULL, domain, 1);
}

/* Blocks. */

static void scan_continuation(caml_value v) {
  struct caml_stack *stack = (struct caml_stack *)(CAML_FIELD(v, 0) & ~1ull);
  if (!stack) return; /* it was resumed */
  typedef void (*action)(void *, caml_value, caml_value *);
  CAML(void, caml_scan_stack, action, int, void *, void *, void *)(add_root_5, 0, NULL, stack, NULL);
  reloader_caml_scan_fiber(stack, look_at_word);
}

static void scan_block(caml_value v) {
  uint64_t tag = CAML_TAG(v), size = CAML_SIZE(v), kind, i = 0;
  kind = is_static(v) ? RELOADER_CAML_GLOBAL : RELOADER_CAML_HEAP_BLOCK;
  if (tag == CAML_CONT_TAG && reloader_caml.family == 5) {
    scan_continuation(v);
    return;
  }
  if (tag == CAML_ABSTRACT_TAG || tag == CAML_CUSTOM_TAG) /* an ephemeron; C's own pointers */
    for (; i < size; i++) look_at_word(CAML_FIELD(v, i), kind, v);
  if (tag >= CAML_NO_SCAN_TAG) return;
  if (tag == CAML_CLOSURE_TAG)
    for (uint64_t end = CAML_ENVIRONMENT(CAML_FIELD(v, 1)); i < end; i++) look_at_word(CAML_FIELD(v, i), kind, v);
  for (; i < size; i++) look_at(CAML_FIELD(v, i), kind, v);
}

static int is_too_late(uint64_t done) {
  if (mark.deadline_us && done % BETWEEN_LOOKS == 0) mark.is_late = reloader_caml_now_us() > mark.deadline_us;
  return mark.is_late;
}

static void drain(void) {
  for (uint64_t done = 0; mark.todo.count && !is_too_late(done); done++)
    scan_block(mark.todo.words[--mark.todo.count]);
}

/* Roots of the candidates are hidden while others' are marked. */
static void hide_roots(void) {
  for (uint64_t i = 0; i < mark.count; i++) {
    struct caml_unit *unit = mark.candidates[i].unit;
    if (!unit || !unit->roots) continue;
    mark.candidates[i].first_root = unit->roots[0];
    unit->roots[0] = 0;
  }
}

static void show_roots(void) {
  for (uint64_t i = 0; i < mark.count; i++) {
    struct caml_unit *unit = mark.candidates[i].unit;
    if (unit && unit->roots) unit->roots[0] = mark.candidates[i].first_root;
  }
}

static void hold_used(const struct candidate *user, uint64_t row) {
  struct candidate *used = row < mark.count ? &mark.candidates[row] : NULL;
  if (!used || used->kind || !used->unit) return;
  used->kind = RELOADER_CAML_CODE;
  used->holder = user->unit->code_begin;
  used->word = used->unit->code_begin;
}

static void hold_all_used(uint64_t row) {
  const struct caml_wish *wish = mark.wish;
  for (uint64_t i = 0; i < wish->use_count; i++)
    if (wish->uses[2 * i] == row) hold_used(&mark.candidates[row], wish->uses[2 * i + 1]);
  for (uint64_t i = 0; wish->together && i < mark.count; i++) hold_used(&mark.candidates[row], i);
}

/* Returns whether a candidate was found held of which we did not know it. */
static int mark_held(void) {
  int found = 0;
  for (uint64_t i = 0; i < mark.count; i++) {
    struct candidate *candidate = &mark.candidates[i];
    if (!candidate->unit || !candidate->kind || candidate->is_marked) continue;
    candidate->is_marked = found = 1;
    const caml_value *root = (const caml_value *)candidate->unit->gc_roots;
    for (; root && *root; root++) look_at(*root, RELOADER_CAML_GLOBAL, (uint64_t)root);
    hold_all_used(i);
  }
  return found;
}

static int is_forgotten(uint64_t word) {
  const struct candidate *hit = owner(word);
  return hit && !hit->kind;
}

static void mark_all(void *unused) {
  (void)unused;
  hide_roots();
  reloader_caml_each_domain(add_roots);
  if (reloader_caml.family == 5) {
    CAML(void, caml_scan_global_roots, void (*)(void *, caml_value, caml_value *), void *)(add_root_5, NULL);
  }
  do drain();
  while (!mark.is_late && mark_held());
  show_roots();
  for (uint64_t i = 0; mark.is_late && i < mark.count; i++)
    if (!mark.candidates[i].kind) mark.candidates[i].kind = RELOADER_CAML_UNFINISHED;
  reloader_caml_cut_backtraces(is_forgotten);
}

static uint64_t retire_unheld(void) {
  struct caml_unit **units = calloc(mark.count + 1, sizeof *units);
  uint64_t count = 0, held = 0;
  if (!units) return mark.count;
  for (uint64_t i = 0; i < mark.count; i++) {
    if (mark.candidates[i].unit && !mark.candidates[i].kind)
      units[count++] = mark.candidates[i].unit;
    else
      held++;
  }
  if (count) {
    /* 5.x: what the cycle under way has queued for marking may be garbage that points to them */
    for (uint64_t i = 0; i < count && reloader_caml.family == 5; i++)
      if (units[i]->roots) units[i]->roots[0] = 0;
    if (reloader_caml.family == 5) CAML(void, caml_finish_major_cycle, int)(0);
    reloader_caml_unregister(units, count);
  }
  free(units);
  return held;
}

static void widen(uint64_t begin, uint64_t end) {
  if (begin < mark.low) mark.low = begin;
  if (end > mark.high) mark.high = end;
}

static void take_candidates(const uint64_t *code_begins) {
  mark.low = UINT64_MAX;
  for (uint64_t i = 0; i < mark.count; i++) {
    struct caml_unit *unit = reloader_caml_unit(code_begins[i]);
    mark.candidates[i].unit = unit;
    mark.candidates[i].kind = unit ? RELOADER_CAML_RETIRED : RELOADER_CAML_UNKNOWN;
    if (!unit) continue;
    widen(unit->code_begin, unit->code_end);
    widen(unit->data_begin, unit->data_end);
    widen(unit->frametable, unit->frametable_end);
  }
}

/* A budget that is not 0: a mark that takes longer is given up. */
uint64_t reloader_caml_retire_now(const struct caml_wish *wish) {
  memset(&mark, 0, sizeof mark);
  mark.deadline_us = wish->budget_us ? reloader_caml_now_us() + wish->budget_us : 0;
  mark.candidates = calloc(wish->count + 1, sizeof *mark.candidates);
  if (!mark.candidates) return wish->count;
  mark.wish = wish;
  mark.count = wish->count;
  take_candidates(wish->code_begins);
  reloader_caml_in_stop(mark_all, NULL);
  reloader_caml_map_free(&mark.seen);
  reloader_caml_list_free(&mark.todo);
  uint64_t held = retire_unheld();
  for (uint64_t i = 0; wish->reply && i < mark.count; i++) memcpy(&wish->reply[3 * i], &mark.candidates[i].kind, 24);
  free(mark.candidates);
  return held;
}

struct retirement {
  struct caml_work work;
  struct caml_wish wish;
  uint64_t held;
};

static void retire(struct caml_work *work) {
  struct retirement *retirement = (struct retirement *)work;
  retirement->held = reloader_caml_retire_now(&retirement->wish);
}

/* args: limit, count, budget in us, count of uses, whether one holds all; the text: the units, then the uses.
 * Returns how many stay, -1 if the moment was not reached. */
uint64_t reloader_caml_retire(const uint64_t *args, const uint64_t *text, uint64_t *reply) {
  struct retirement retirement = {
      .work = {retire, args[0], 0, 0},
      .wish = {text, args[1], text + args[1], args[3], args[4], args[2], reply},
  };
  int fits = args[1] <= RELOADER_REPLY_SIZE / 24 && args[3] <= (RELOADER_TEXT_SIZE / 8 - args[1]) / 2;
  errno = reloader_caml.family && fits ? EAGAIN : EINVAL;
  if (errno == EINVAL || reloader_caml_run(&retirement.work)) return (uint64_t)-1;
  errno = 0;
  return retirement.held;
}
