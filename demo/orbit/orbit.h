/* A dot on an orbit: what moves it, what draws it, and what counts. */
#ifndef ORBIT_H
#define ORBIT_H

struct dot {
    int x;
    int direction;
};

extern struct dot dot; /* main.c: where the dot is */
extern long ticks;     /* main.c: how often it moved */

void move(struct dot *dot);                                /* move.c */
void draw(const struct dot *dot, char *line, int size);    /* draw.c */

enum { WIDTH = 24 };

#endif
