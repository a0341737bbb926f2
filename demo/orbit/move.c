/* How the dot moves. */
#include "orbit.h"

static int turns; /* kept over every reload */

void move(struct dot *dot)
{
    dot->x += dot->direction;
    if (dot->x <= 0 || dot->x >= WIDTH - 1) {
        dot->direction = -dot->direction;
        turns++;
    }
}

int turn_count(void)
{
    return turns;
}
