/* The OCaml runtime as the agent sees it: no OCaml header is included and nothing of it is linked.
 *
 * The daemon passes the addresses of what it found in the executable, in the order of the list below; which
 * of them exist decides the family: 4 is what 4.12 to 4.14 have in common, 5 is 5.3. What only a header tells
 * (the layout of a block, the place of a field in the domain state) is repeated here. Tested are 4.13 and 5.3.
 */
#ifndef RELOADER_OCAML_H
#define RELOADER_OCAML_H

#include "internal.h"

/* Beside each name: which family cannot do without it. */
enum { NEITHER = 0, CAML4 = 1, CAML5 = 2, BOTH = 3 };
#define CAML_SYMBOLS(NAME) \
  NAME(caml_modify, BOTH) \
  NAME(caml_callback_exn, BOTH) \
  NAME(caml_record_backtraces, BOTH) \
  NAME(caml_format_exception, BOTH) \
  NAME(caml_stat_free, BOTH) \
  NAME(caml_failwith, BOTH) \
  NAME(caml_debuginfo_extract, BOTH) \
  NAME(caml_debuginfo_location, BOTH) \
  NAME(caml_debuginfo_next, BOTH) \
  NAME(caml_register_code_fragment, BOTH) \
  NAME(caml_find_code_fragment_by_num, BOTH) \
  NAME(caml_remove_code_fragment, BOTH) \
  NAME(caml_unregister_frametable, BOTH) \
  NAME(caml_do_roots, BOTH) \
  NAME(caml_scan_roots_hook, BOTH) \
  NAME(caml_finish_major_cycle, BOTH) \
  NAME(caml_enter_blocking_section_hook, BOTH) \
  NAME(caml_leave_blocking_section_hook, BOTH) \
  NAME(caml_globals_inited, BOTH) \
  NAME(Caml_state, CAML4) \
  NAME(caml_register_frametable, CAML4) \
  NAME(caml_register_dyn_global, CAML4) \
  NAME(caml_empty_minor_heap, CAML4) \
  NAME(caml_record_signal, CAML4) \
  NAME(caml_pending_signals, CAML4) \
  NAME(caml_sigmask_hook, CAML4) \
  NAME(caml_channel_mutex_lock, CAML4) /* set by systhreads when it is initialised */ \
  NAME(caml_page_table_add, CAML4) \
  NAME(caml_page_table_remove, CAML4) \
  NAME(caml_page_table_lookup, CAML4) \
  NAME(caml_next_frame_descriptor, CAML4) \
  NAME(caml_state, CAML5) /* thread-local: its offset from the thread pointer */ \
  NAME(caml_register_frametables, CAML5) \
  NAME(caml_register_dyn_globals, CAML5) \
  NAME(caml_empty_minor_heaps_once, CAML5) \
  NAME(caml_try_run_on_all_domains, CAML5) \
  NAME(caml_init_domain_self, CAML5) \
  NAME(caml_acquire_domain_lock, CAML5) \
  NAME(caml_release_domain_lock, CAML5) \
  NAME(caml_domain_external_interrupt_hook, CAML5) \
  NAME(caml_scan_global_roots, CAML5) \
  NAME(caml_scan_stack, CAML5) \
  NAME(caml_get_frame_descrs, CAML5) \
  NAME(caml_find_frame_descr, CAML5) \
  NAME(caml_callback_res, CAML5) /* tells 5.3 from versions whose domain state is another */ \
  NAME(caml_c_thread_register, NEITHER) /* systhreads, from here on */ \
  NAME(caml_c_thread_unregister, NEITHER) \
  NAME(caml_leave_blocking_section, NEITHER) \
  NAME(caml_enter_blocking_section_no_pending, NEITHER)

enum caml_symbol {
#define CAML_ENUM(name, need) at_##name,
  CAML_SYMBOLS(CAML_ENUM)
#undef CAML_ENUM
      CAML_SYMBOL_COUNT,
};

enum reloader_caml_holder {
  RELOADER_CAML_RETIRED = 0,
  RELOADER_CAML_HEAP_BLOCK = 1,
  RELOADER_CAML_GLOBAL = 2, /* a field of a module, or other static data */
  RELOADER_CAML_STACK = 3,
  RELOADER_CAML_BACKTRACE = 4,
  RELOADER_CAML_C_ROOT = 5,
  RELOADER_CAML_UNKNOWN = 6, /* no such unit is registered */
  RELOADER_CAML_UNFINISHED = 7, /* the heap is too large to be marked in the time that was given */
  RELOADER_CAML_CODE = 8,       /* code of another unit that is held */
};

/* Words of a script; a place is the address of a module's block, a depth and four indices. */
enum reloader_caml_word {
  RELOADER_CAML_REGISTER = 1, /* frametable, gc_roots, data_begin, data_end, code_begin, code_end */
  RELOADER_CAML_INIT = 2,     /* entry */
  RELOADER_CAML_KEEP = 3,     /* n, then n times an old and a new place */
  RELOADER_CAML_SWAP = 4,     /* the same */
  RELOADER_CAML_PAIR = 5,     /* the same; replies four words a row */
  RELOADER_CAML_CALL = 6,     /* place */
};
#define CAML_PLACE 6u /* words */

typedef uint64_t caml_value;

#define CAML_UNIT ((caml_value)1)
#define CAML_IS_BLOCK(v) (((v)&1) == 0)
#define CAML_FIELD(v, i) (((caml_value *)(v))[i])
#define CAML_HEADER(v) (((const uint64_t *)(v))[-1])
#define CAML_SIZE(v) (CAML_HEADER(v) << 8 >> 18) /* the upper byte is reserved in 5.x, zero in 4.x */
#define CAML_TAG(v) (CAML_HEADER(v) & 255)
#define CAML_BLACK (3ull << 8) /* outside of the heap: never marked, never moved */
#define CAML_IS_EXCEPTION(v) (((v)&3) == 2)

enum {
  CAML_CONT_TAG = 245, /* 5.x; in 4.x it is a constructor's */
  CAML_CLOSURE_TAG = 247,
  CAML_INFIX_TAG = 249,
  CAML_NO_SCAN_TAG = 251,
  CAML_ABSTRACT_TAG = 251,
  CAML_STRING_TAG = 252,
  CAML_CUSTOM_TAG = 255,
};

/* What a function's closure says beside its code pointer: arity in the upper byte, then its environment's start. */
#define CAML_ARITY(info) ((int64_t)(info) >> 56)
#define CAML_ENVIRONMENT(info) ((info) << 8 >> 9)

/* Which word of the domain state is what. */
struct caml_fields {
  uint8_t local_roots, backtrace_pos, backtrace_active, backtrace_buffer, top_of_stack, young_limit;
  uint8_t action_pending, external_interrupt, current_stack, bottom_of_stack, last_return;
  /* byte offsets in systhreads' record of a thread, which begins with a root; its exception is one, too */
  uint8_t thread_exception, thread_buffer, thread_pos, thread_stack;
};

struct caml_roots { /* local roots as the runtime chains them; must lie on the stack */
  struct caml_roots *next;
  int64_t table_count, item_count;
  caml_value *tables[5];
};

struct caml_stack { /* of a fiber, 5.x */
  uint64_t *sp;
  void *exception_pointer;
  struct {
    caml_value on_value, on_exception, on_effect;
    struct caml_stack *parent;
  } *handler; /* at the stack's upper end */
};

struct caml_unit {
  uint64_t frametable, gc_roots, data_begin, data_end, code_begin, code_end, frametable_end;
  caml_value *roots; /* our copy of gc_roots, which the runtime never forgets */
  void *fragment;
  uint32_t live;
};

struct reloader_caml {
  uint64_t at[CAML_SYMBOL_COUNT];
  int family; /* 4 or 5; 0: not attached */
  const struct caml_fields *fields;
};
extern struct reloader_caml reloader_caml;

/* A function of the runtime by its name, and a variable. */
#define CAML(result, name, ...) ((result(*)(__VA_ARGS__))reloader_caml.at[at_##name])
#define CAML_VARIABLE(type, name) (*(type *)reloader_caml.at[at_##name])

/* ocaml.c */
uint64_t reloader_caml_attach(const uint64_t *args, const uint64_t *addresses, uint64_t *reply);
void reloader_caml_in_child(void);
uint64_t *reloader_caml_domain(void); /* this thread's domain state */
int reloader_caml_has_threads(void);
int reloader_caml_is_value(caml_value v);
void reloader_caml_in_stop(void (*run)(void *data), void *data); /* while no domain runs OCaml code */
void reloader_caml_each_domain(void (*visit)(uint64_t *domain)); /* inside of such a stop */

/* ocaml_point.c: run work at a moment when the program's OCaml part stands still. */
struct caml_work {
  void (*run)(struct caml_work *work);
  uint64_t limit_ms;       /* to reach that moment */
  uint64_t patience_ms;    /* for one call into OCaml, 0: any time */
  uint64_t globals_needed; /* units of the executable whose initialisers must have ended */
  int is_refused;          /* the process has forked: the child would lack what is done here */
};
int reloader_caml_run(struct caml_work *work); /* 0, or -1: it never ran and never will */
uint64_t reloader_caml_hooks(uint64_t is_let_go);
uint64_t reloader_caml_now_us(void);
/* With unit; may be interrupted for taking too long. `late_ms`: how long it took if that was too long, else 0. */
caml_value reloader_caml_call(caml_value closure, uint64_t *late_ms);

/* ocaml_hold.c: the program waits at the entry of a unit, for work that comes. */
uint64_t reloader_caml_hold(const uint64_t *args);
int reloader_caml_is_held(void);
void reloader_caml_let_go(void);

/* ocaml_units.c */
void reloader_caml_register(const uint64_t *words, uint64_t count, uint64_t stride);
void reloader_caml_unregister(struct caml_unit **units, uint64_t count);
struct caml_unit *reloader_caml_unit(uint64_t code_begin);
extern struct caml_unit *reloader_caml_units;
extern uint64_t reloader_caml_unit_count;

/* ocaml_load.c */
uint64_t reloader_caml_script(const uint64_t *args, uint64_t *text, uint64_t *reply);

/* ocaml_error.c: the exception's text, then its backtrace, a line each. */
uint64_t reloader_caml_describe(caml_value exception, char *text, uint64_t size);
void reloader_caml_forget_exception(int active);

/* ocaml_mark.c */
uint64_t reloader_caml_retire(const uint64_t *args, const uint64_t *text, uint64_t *reply);
struct caml_wish {
  const uint64_t *code_begins; /* of the units to be retired */
  uint64_t count;
  const uint64_t *uses; /* pairs of rows: the first unit's code goes to the second one's, without any pointer */
  uint64_t use_count;
  uint64_t together; /* instead: one that is held holds all */
  uint64_t budget_us;
  uint64_t *reply; /* three words for each, or NULL */
};
/* At a safe point; returns how many units stay. */
uint64_t reloader_caml_retire_now(const struct caml_wish *wish);

/* ocaml_stacks.c: `look` gets every address at which OCaml code goes on, and where it is written. */
typedef void (*reloader_caml_look)(uint64_t word, uint64_t kind, uint64_t holder);
void reloader_caml_scan_domain(uint64_t *domain, reloader_caml_look look);
void reloader_caml_scan_fiber(const struct caml_stack *stack, reloader_caml_look look);
void reloader_caml_cut_backtraces(int (*forgotten)(uint64_t word));
uint64_t reloader_caml_frametable_end(const uint64_t *table);

/* ocaml_forward.c: kept state. */
int reloader_caml_keep(const uint64_t *rows, uint64_t count, uint64_t *forwarded);
caml_value *reloader_caml_place(const uint64_t *words);

/* ocaml_map.c: words, and a word for each; memory of its own, given back at once. */
struct caml_map {
  uint64_t *rows; /* (key, value) each */
  uint64_t capacity, count;
};
uint64_t *reloader_caml_map_add(struct caml_map *map, uint64_t key, int *is_new);
uint64_t *reloader_caml_map_find(const struct caml_map *map, uint64_t key);
void reloader_caml_map_free(struct caml_map *map);

struct caml_list { /* of words, grows at its end */
  uint64_t *words;
  uint64_t capacity, count;
};
void reloader_caml_push(struct caml_list *list, uint64_t word);
void reloader_caml_list_free(struct caml_list *list);

#endif
