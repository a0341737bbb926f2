/* A script of one transaction, executed at one safe point: units registered, initialised and swapped in.
 *
 * An exception undoes it: fields that were swapped get their old values back (held meanwhile as roots), and the
 * units are forgotten unless something holds them, as what the initialiser left in an at_exit list does.
 */
#define _GNU_SOURCE
#include "ocaml.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define ROW (2 * CAML_PLACE)
#define REPLY_FIRST 8 /* the words before are the header */
#define REPLY_WORDS ((RELOADER_CAML_TEXT_OFFSET - RELOADER_REPLY_OFFSET) / 8)

enum { RAN = 0, GAVE_UP = 1, RAISED = 2, HOOK_RAISED = 3, NO_PLACE = 4 };

struct script {
  struct caml_work work;
  const uint64_t *words, *end;
  const uint64_t *abandoned; /* not 0: who asked has given up, and takes all of it for undone */
  uint64_t *reply; /* op that failed, words, bytes of text, pointers forwarded, units still registered */
  uint64_t result, replied, token;
  uint64_t swap_count; /* rows of all SWAPs, and those done so far */
  uint64_t swapped;
  caml_value *saved;
  struct caml_list swaps; /* of each done row: its old place in the script */
  struct caml_list units; /* code_begin of each */
  uint64_t code_entry[3]; /* a static closure for initialisers: header, code, what kind */
};

/* Returns how many words an operation takes, 0 if it is none. */
static uint64_t words_of(const uint64_t *op, const uint64_t *end) {
  uint64_t left = (uint64_t)(end - op), rows = left > 1 ? op[1] : 0, size = 0;
  if (op[0] == RELOADER_CAML_REGISTER) size = 7;
  if (op[0] == RELOADER_CAML_INIT) size = 2;
  if (op[0] == RELOADER_CAML_CALL) size = 1 + CAML_PLACE;
  if (op[0] >= RELOADER_CAML_KEEP && op[0] <= RELOADER_CAML_PAIR && left > 1 && rows <= left / ROW)
    size = 2 + rows * ROW;
  return size <= left ? size : 0;
}

/* The whole script is looked at before anything is done. */
static int is_sound(struct script *script) {
  uint64_t size, pairs = 0;
  for (const uint64_t *op = script->words; op < script->end; op += size) {
    size = words_of(op, script->end);
    if (!size) return 0;
    if (op[0] == RELOADER_CAML_SWAP) script->swap_count += op[1];
    if (op[0] == RELOADER_CAML_PAIR) pairs += op[1];
  }
  return REPLY_FIRST + 4 * pairs <= REPLY_WORDS;
}

static void exchange_fields(struct script *script, const uint64_t *rows, uint64_t count) {
  for (uint64_t i = 0; i < count; i++, rows += ROW) {
    caml_value *old = reloader_caml_place(rows), *new = reloader_caml_place(rows + CAML_PLACE);
    if (!old || !new) continue; /* a row before replaced the block it was in */
    script->saved[script->swapped++] = *old;
    reloader_caml_push(&script->swaps, (uint64_t)rows);
    CAML(void, caml_modify, caml_value *, caml_value)(old, *new);
  }
}

/* Latest first, so that a place means what it meant. */
static void restore_fields(struct script *script) {
  while (script->swapped) {
    script->swapped--;
    const uint64_t *row = (const uint64_t *)script->swaps.words[script->swapped];
    CAML(void, caml_modify, caml_value *, caml_value)(reloader_caml_place(row), script->saved[script->swapped]);
  }
}

struct stop {
  struct script *script;
  const uint64_t *rows;
  uint64_t count;
};

static void swap_in_stop(void *data) {
  struct stop *stop = data;
  if (stop->rows)
    exchange_fields(stop->script, stop->rows, stop->count);
  else
    restore_fields(stop->script);
}

static int swap(struct script *script, const uint64_t *rows, uint64_t count) {
  for (uint64_t i = 0; i < 2 * count; i++)
    if (!reloader_caml_place(rows + i * CAML_PLACE)) return NO_PLACE;
  struct stop stop = {script, rows, count};
  reloader_caml_in_stop(swap_in_stop, &stop);
  return RAN;
}

/* Where a function without environment has its code, or NULL: such closures are part of a unit's static data. */
static uint64_t *code_of(caml_value v, int64_t *arity) {
  if (!CAML_IS_BLOCK(v) || !reloader_caml_is_value(v)) return NULL;
  uint64_t tag = CAML_TAG(v);
  if (tag != CAML_CLOSURE_TAG && tag != CAML_INFIX_TAG) return NULL;
  caml_value block = tag == CAML_INFIX_TAG ? v - CAML_SIZE(v) * 8 : v;
  uint64_t info = CAML_FIELD(v, 1);
  if ((v - block) / 8 + CAML_ENVIRONMENT(info) != CAML_SIZE(block)) return NULL;
  const struct reloader_region *data = &reloader_control->regions[RELOADER_DATA];
  int is_exe = v >= reloader_control->exe_start && v < reloader_control->exe_end;
  if (!is_exe && v - data->addr >= data->size) return NULL;
  *arity = CAML_ARITY(info);
  return &CAML_FIELD(v, *arity == 0 || *arity == 1 ? 0 : 2);
}

static int pair(struct script *script, const uint64_t *rows, uint64_t count) {
  for (uint64_t i = 0; i < count; i++, rows += ROW) {
    caml_value *old = reloader_caml_place(rows), *new = reloader_caml_place(rows + CAML_PLACE);
    if (!old || !new) return NO_PLACE;
    int64_t old_arity = 0, new_arity = 0;
    uint64_t *old_code = code_of(*old, &old_arity), *new_code = code_of(*new, &new_arity);
    uint64_t *reply = &script->reply[REPLY_FIRST + script->replied];
    memset(reply, 0, 4 * 8);
    if (old_code && new_code && old_arity == new_arity) {
      reply[0] = *old_code;
      reply[1] = *new_code;
      reply[2] = (uint64_t)new_arity;
      reply[3] = (uint64_t)new_code;
    }
    script->replied += 4;
  }
  return RAN;
}

static uint64_t describe_late(char *text, uint64_t late_ms, uint64_t patience_ms) {
  return (uint64_t)snprintf(text, RELOADER_CAML_TEXT_SIZE,
                            "no exception, but it takes too long: it ended after %" PRIu64 " ms, and may take %" PRIu64
                            " ms ([ocaml] initialiser_s)",
                            late_ms, patience_ms);
}

static int call(struct script *script, caml_value closure, int failure) {
  uint64_t active = reloader_caml_domain()[reloader_caml.fields->backtrace_active], late_ms;
  if (!active) CAML(void, caml_record_backtraces, int)(1);
  caml_value result = reloader_caml_call(closure, &late_ms);
  if (CAML_IS_EXCEPTION(result) || late_ms) {
    char *text = (char *)reloader_control + RELOADER_CAML_TEXT_OFFSET;
    script->reply[2] = CAML_IS_EXCEPTION(result)
                           ? reloader_caml_describe(result & ~3ull, text, RELOADER_CAML_TEXT_SIZE)
                           : describe_late(text, late_ms, script->work.patience_ms);
    reloader_caml_forget_exception((int)active);
    return failure;
  }
  if (!active) CAML(void, caml_record_backtraces, int)(0);
  return RAN;
}

static int initialise(struct script *script, uint64_t entry) {
  script->code_entry[1] = entry;
  return call(script, (caml_value)&script->code_entry[1], RAISED);
}

static int call_hook(struct script *script, const uint64_t *words) {
  caml_value *place = reloader_caml_place(words);
  if (!place || !CAML_IS_BLOCK(*place)) return NO_PLACE;
  return call(script, *place, HOOK_RAISED);
}

/* Neighbours are registered together. */
static uint64_t register_units(struct script *script, const uint64_t *op) {
  uint64_t count = 0;
  for (const uint64_t *next = op; next < script->end && next[0] == RELOADER_CAML_REGISTER; next += 7, count++)
    reloader_caml_push(&script->units, next[5]);
  reloader_caml_register(op + 1, count, 7);
  return 7 * count;
}

static int execute(struct script *script, const uint64_t *op, uint64_t *size) {
  *size = words_of(op, script->end);
  switch (op[0]) {
    case RELOADER_CAML_REGISTER:
      *size = register_units(script, op);
      return RAN;
    case RELOADER_CAML_INIT:
      return initialise(script, op[1]);
    case RELOADER_CAML_KEEP:
      return reloader_caml_keep(op + 2, op[1], &script->reply[3]) ? NO_PLACE : RAN;
    case RELOADER_CAML_SWAP:
      return swap(script, op + 2, op[1]);
    case RELOADER_CAML_PAIR:
      return pair(script, op + 2, op[1]);
    default:
      return call_hook(script, op + 1);
  }
}

static void undo(struct script *script) {
  struct stop stop = {script, NULL, 0};
  if (script->swapped) reloader_caml_in_stop(swap_in_stop, &stop);
  struct caml_wish wish = {.code_begins = script->units.words, .count = script->units.count, .together = 1};
  script->reply[4] = reloader_caml_retire_now(&wish);
}

static int is_abandoned(const struct script *script) {
  return __atomic_load_n(script->abandoned, __ATOMIC_SEQ_CST) != 0;
}

static void run_script(struct caml_work *work) {
  struct script *script = (struct script *)work;
  uint64_t *domain = reloader_caml_domain(), size, *chain = &domain[reloader_caml.fields->local_roots];
  struct caml_roots roots = {(struct caml_roots *)*chain, 1, (int64_t)script->swap_count, {script->saved}};
  *chain = (uint64_t)&roots;
  for (const uint64_t *op = script->words; op < script->end && script->result == RAN; op += size) {
    script->reply[0] = (uint64_t)(op - script->words);
    script->result = (uint64_t)execute(script, op, &size);
  }
  if (script->result == RAN && is_abandoned(script)) script->result = GAVE_UP;
  if (script->result == RAN)
    reloader_control->caml_token = script->token;
  else
    undo(script);
  *chain = (uint64_t)roots.next;
}

/* args: limit, words, token, the script's address (0: the text area), patience, globals needed. */
uint64_t reloader_caml_script(const uint64_t *args, uint64_t *text, uint64_t *reply) {
  const uint64_t *words = args[3] ? (const uint64_t *)args[3] : text;
  struct script script = {
      .work = {run_script, args[0], args[4], args[5]},
      .token = args[2],
      .words = words,
      .end = words + args[1],
      .abandoned = &args[7],
      .reply = reply,
      .code_entry = {2 << 10 | CAML_BLACK | CAML_CLOSURE_TAG, 0, 1ull << 56 | 2 << 1 | 1},
  };
  memset(reply, 0, REPLY_FIRST * 8);
  if (!reloader_caml.family || !is_sound(&script)) {
    errno = EINVAL;
    return (uint64_t)-1;
  }
  uint64_t size = (script.swap_count + 1) * 8;
  script.saved = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (script.saved == MAP_FAILED) return (uint64_t)-1;
  for (uint64_t i = 0; i < script.swap_count; i++) script.saved[i] = CAML_UNIT;
  if (is_abandoned(&script) || reloader_caml_run(&script.work)) script.result = GAVE_UP;
  reply[1] = script.replied;
  munmap(script.saved, size);
  reloader_caml_list_free(&script.swaps);
  reloader_caml_list_free(&script.units);
  return script.result;
}
