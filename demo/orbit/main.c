/* The loop. It never ends and is never replaced: it calls the newest move() and draw() all the same. */
#include "orbit.h"

#include <signal.h>
#include <stdio.h>
#include <unistd.h>

struct dot dot = {0, 1};
long ticks;

static volatile sig_atomic_t done;

static void finish(int signal_number)
{
    (void)signal_number;
    done = 1;
}

int main(void)
{
    char line[128];

    signal(SIGTERM, finish);
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (!done) {
        move(&dot);
        ticks++;
        draw(&dot, line, sizeof line);
        printf("%6ld %s\n", ticks, line);
        usleep(20000);
    }
    printf("done after %ld ticks\n", ticks);
    return 0;
}
