/* An exception that an initialiser raised: its text and backtrace, and how the runtime forgets it. */
#define _GNU_SOURCE
#include "ocaml.h"

#include <stdio.h>
#include <string.h>

struct location { /* struct caml_loc_info */
  int is_valid, is_raise;
  const char *file, *function;
  int numbers[6]; /* 4.x: line, first and last character, inlined; 5.x: first and last line, then the same */
};

struct text {
  char *bytes;
  uint64_t size, room;
};

static void add_line(struct text *text, const char *line) {
  uint64_t size = strlen(line);
  if (text->size + size + 1 > text->room) return;
  memcpy(text->bytes + text->size, line, size);
  text->bytes[text->size + size] = '\n';
  text->size += size + 1;
}

static const char *verb(const struct location *at, uint64_t index) {
  if (at->is_raise) return index ? "Re-raised at" : "Raised at";
  return index ? "Called from" : "Raised by primitive operation at";
}

/* As the runtime prints it. */
static void add_location(struct text *text, const struct location *at, uint64_t index) {
  char line[512];
  const int *n = at->numbers;
  if (!at->is_valid && at->is_raise) return;
  if (!at->is_valid)
    snprintf(line, sizeof line, "%s unknown location", verb(at, index));
  else if (reloader_caml.family == 4)
    snprintf(line, sizeof line, "%s %s in file \"%s\"%s, line %d, characters %d-%d", verb(at, index), at->function,
             at->file, n[3] ? " (inlined)" : "", n[0], n[1], n[2]);
  else
    snprintf(line, sizeof line, "%s %s in file \"%s\"%s, line %d, characters %d-%d", verb(at, index), at->function,
             at->file, n[5] ? " (inlined)" : "", n[0], n[1], n[0] == n[2] ? n[3] : n[4]);
  add_line(text, line);
}

uint64_t reloader_caml_describe(caml_value exception, char *bytes, uint64_t room) {
  struct text text = {bytes, 0, room};
  char *message = CAML(char *, caml_format_exception, caml_value)(exception);
  add_line(&text, message ? message : "an exception");
  if (message) CAML(void, caml_stat_free, void *)(message);
  const struct caml_fields *fields = reloader_caml.fields;
  const uint64_t *domain = reloader_caml_domain();
  const uint64_t *slots = (const uint64_t *)domain[fields->backtrace_buffer];
  for (uint64_t i = 0; slots && i < domain[fields->backtrace_pos]; i++) {
    void *info = CAML(void *, caml_debuginfo_extract, uint64_t)(slots[i]);
    for (; info; info = CAML(void *, caml_debuginfo_next, void *)(info)) {
      struct location at;
      memset(&at, 0, sizeof at);
      CAML(void, caml_debuginfo_location, void *, struct location *)(info, &at);
      add_location(&text, &at, i);
    }
  }
  return text.size;
}

/* Off and on again: the runtime's own way to drop the last exception and its backtrace. */
void reloader_caml_forget_exception(int active) {
  CAML(void, caml_record_backtraces, int)(0);
  CAML(void, caml_record_backtraces, int)(1);
  CAML(void, caml_record_backtraces, int)(active);
}
