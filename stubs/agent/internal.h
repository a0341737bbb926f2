/* What the agent's own files share with each other. */
#ifndef RELOADER_INTERNAL_H
#define RELOADER_INTERNAL_H

#include "agent.h"

#define RELOADER_EXPORT __attribute__((visibility("default")))

/* The mapped arena, or NULL before reloader_start. */
extern struct reloader_control *reloader_control;

/* start.c */
RELOADER_EXPORT void reloader_start(struct reloader_params *params);

/* space.c: find a hole near the executable and map every region of the memfd into it. */
struct reloader_control *reloader_map_arena(struct reloader_params *params);

/* unwind.c */
void reloader_unwind_prepare(void);
int reloader_unwind_patch(void);

/* dirty.c */
uint64_t reloader_track_writes(uint64_t *reply);

/* commands.c */
void reloader_serve(void);

#endif
