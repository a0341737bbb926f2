/* How the dot moves: twice as fast. */
#include "orbit.h"

static int turns[2]; /* there and back: no room for it where the old one is */

static void turn_at(struct dot *dot, int x, int direction)
{
    dot->x = x;
    dot->direction = direction;
    turns[direction > 0]++;
}

void move(struct dot *dot)
{
    dot->x += dot->direction * 2;
    if (dot->x <= 0)
        turn_at(dot, 0, 1);
    else if (dot->x >= WIDTH - 1)
        turn_at(dot, WIDTH - 1, -1);
}

int turn_count(void)
{
    return turns[0] + turns[1];
}
