/* What the agent's own files share with each other. */
#ifndef RELOADER_INTERNAL_H
#define RELOADER_INTERNAL_H

#include "agent.h"

#define RELOADER_EXPORT __attribute__((visibility("default")))

/* The mapped arena, or NULL before reloader_start. */
extern struct reloader_control *reloader_control;

/* start.c */
extern uint32_t reloader_number; /* this process's in its family */
RELOADER_EXPORT void reloader_start(struct reloader_params *params);
uint64_t reloader_enter(uint64_t number);
int reloader_has_forked(void); /* since the daemon looked which processes there are */

/* space.c: find a hole near the executable and map every region of the memfd into it. */
struct reloader_control *reloader_map_arena(struct reloader_params *params);

/* unwind.c */
void reloader_unwind_prepare(void);
int reloader_unwind_patch(void);

/* dirty.c */
uint64_t reloader_track_writes(uint64_t *reply);

/* tls.c */
void reloader_threads_prepare(struct reloader_control *control);
uint64_t reloader_threads_write(uint64_t offset, uint64_t size, const char *bytes);
uint64_t reloader_thread_offset(const char *name);

/* libc_symbols.c */
uint64_t reloader_own_symbol(const char *name);
uint64_t reloader_old_symbol(const char *name);
uint64_t reloader_thread_atexits(uint64_t handle);

/* catch.c */
uint64_t reloader_call_catching(const uint64_t *call, uint64_t *reply);

/* crash.c */
void reloader_crash_prepare(void);
uint64_t reloader_signal_handlers(uint64_t *reply);

/* jit.c */
uint64_t reloader_jit_register(uint64_t count, const char *text);
void reloader_jit_forget(uint64_t start, uint64_t size);

/* commands.c */
void reloader_serve(void);

#endif
