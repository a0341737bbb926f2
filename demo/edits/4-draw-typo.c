/* How a tick looks. */
#include "orbit.h"

#include <stdio.h>
#include <string.h>

int turn_count(void);

static int frames; /* new in this version: counts from its first call */

static char shape(const struct dot *dot)
{
    return dot->direction > 0 ? 'O' : 'o';
}

void draw(const struct dot *dot, char *line, int size)
{
    char lane[WIDTH + 1];

    frames++
    memset(lane, '.', WIDTH);
    lane[WIDTH] = 0;
    lane[dot->x] = shape(dot);
    snprintf(line, (size_t)size, "(%s) turns %d, frames %d", lane, turn_count(), frames);
}
