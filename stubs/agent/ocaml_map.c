/* Sets, maps and lists of words in memory of their own: whoever marks a heap must not use its allocator. */
#define _GNU_SOURCE
#include "ocaml.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static uint64_t *take(uint64_t words) {
  void *memory = mmap(NULL, words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) abort(); /* as the runtime does: there is no way back from inside of a mark */
  return memory;
}

static uint64_t *row_of(const struct caml_map *map, uint64_t key) {
  uint64_t mask = map->capacity - 1, row = (key >> 3) * 0x9E3779B97F4A7C15ull >> 20 & mask;
  while (map->rows[2 * row] && map->rows[2 * row] != key) row = (row + 1) & mask;
  return &map->rows[2 * row];
}

static void grow(struct caml_map *map) {
  struct caml_map bigger = {.capacity = map->capacity ? 2 * map->capacity : 2048, .count = map->count};
  bigger.rows = take(2 * bigger.capacity);
  for (uint64_t i = 0; i < map->capacity; i++)
    if (map->rows[2 * i]) memcpy(row_of(&bigger, map->rows[2 * i]), &map->rows[2 * i], 16);
  reloader_caml_map_free(map);
  *map = bigger;
}

/* Returns the key's value, 0 for a new key. No key is 0. */
uint64_t *reloader_caml_map_add(struct caml_map *map, uint64_t key, int *is_new) {
  if (2 * (map->count + 1) > map->capacity) grow(map);
  uint64_t *row = row_of(map, key);
  *is_new = !row[0];
  map->count += (uint64_t)*is_new;
  row[0] = key;
  return &row[1];
}

uint64_t *reloader_caml_map_find(const struct caml_map *map, uint64_t key) {
  if (!map->capacity) return NULL;
  uint64_t *row = row_of(map, key);
  return row[0] ? &row[1] : NULL;
}

void reloader_caml_map_free(struct caml_map *map) {
  if (map->capacity) munmap(map->rows, map->capacity * 16);
  memset(map, 0, sizeof *map);
}

void reloader_caml_push(struct caml_list *list, uint64_t word) {
  if (list->count == list->capacity) {
    uint64_t capacity = list->capacity ? 2 * list->capacity : 2048;
    uint64_t *words = take(capacity);
    uint64_t count = list->count;
    if (count) memcpy(words, list->words, count * 8);
    reloader_caml_list_free(list);
    *list = (struct caml_list){words, capacity, count};
  }
  list->words[list->count++] = word;
}

void reloader_caml_list_free(struct caml_list *list) {
  if (list->capacity) munmap(list->words, list->capacity * 8);
  memset(list, 0, sizeof *list);
}
