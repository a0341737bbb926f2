"""The program under load: threads call what is edited, and end the program on a wrong answer.

Each of its objects keeps a count of its calls in a variable; the program counts them too. What
an object returns carries its version, the argument, and a letter of its constants.
"""

from pathlib import Path
from random import Random
from typing import Final

from tests.support.road import Program

PARTS: Final = 3
_MAIN: Final = """
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define PARTS %(parts)d
typedef unsigned long word;
word part0(word), part1(word), part2(word);
extern word calls0, calls1, calls2;
static word (*const part[PARTS])(word) = {part0, part1, part2};
static word *const calls[PARTS] = {&calls0, &calls1, &calls2};
static word own[PARTS];
static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
static word ask(int which, word n)
{
    pthread_mutex_lock(&one);  /* so that both counts can be compared at any time */
    word answer = part[which](n);
    own[which]++;
    if ((answer & 0xffff) != (n & 0xffff) || (answer >> 16 & 0xff) != 'a' + which)
        _exit(3);
    if (own[which] != *calls[which])
        _exit(4);
    pthread_mutex_unlock(&one);
    return answer >> 24;
}
static void *load(void *unused)
{
    for (word n = 0;; n++) {
        ask(n %% PARTS, n);
        if (n %% 64 == 0) usleep(1000);
    }
    return unused;
}
int main(void)
{
    char line[64];
    pthread_t thread;
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    for (int i = 0; i < 3; i++) pthread_create(&thread, NULL, load, NULL);
    while (fgets(line, sizeof line, stdin))
        printf("%%lu\\n", ask(atoi(line), 7));
    return 0;
}
"""
_PART: Final = """
typedef unsigned long word;
word calls%(which)d;
static const char *const marks[] = {"%(mark)s%(text)s", "x"};
%(extra)s
static word __attribute__((noinline)) mark(word n)
{
    return (word)marks[n & 0][0] << 16 | (n & 0xffff);
}
word part%(which)d(word n)
{
    calls%(which)d++;
    return mark(n)%(sum)s | %(version)dul << 24;
}
"""
_HELPER: Final = """
static word seen%(row)d;
word __attribute__((noinline)) help%(which)d_%(row)d(word n) { return ++seen%(row)d * 0 * n; }
word (*taken%(which)d_%(row)d)(word) = help%(which)d_%(row)d;
"""


def part(which: int, version: int, random: Random) -> str:
    """Return the text of an object: other constants, helpers and variables each time."""
    rows = [row for row in range(3) if random.random() < 0.5]
    return _PART % {
        "which": which,
        "version": version,
        "mark": "abc"[which],
        "text": "y" * random.randrange(20),
        "extra": "".join(_HELPER % {"which": which, "row": row} for row in rows),
        "sum": "".join(f" + taken{which}_{row}(n)" for row in rows),
    }


class Loaded(Program):
    """The program, its versions made by seed."""

    def __init__(self, folder: Path, random: Random) -> None:
        super().__init__(folder, ["-O1", "-g", "-falign-functions=16"])
        self.random = random
        self.versions = [0] * PARTS  # what each object is compiled from
        self.compile(main=_MAIN % {"parts": PARTS})
        for which in range(PARTS):
            self.compile(**{f"part{which}": part(which, 0, random)})
        self.link()

    def edit(self, which: int, version: int) -> Path:
        """Compile another version of an object into its place."""
        self.versions[which] = version
        (path,) = self.compile(**{f"part{which}": part(which, version, self.random)})
        return path

    def live(self, which: int) -> int:
        """Return the version that runs."""
        return self.ask(which)

    def is_well(self) -> bool:
        """Return whether it runs, and no thread has seen a wrong answer or a lost count."""
        return self.process is not None and self.process.poll() is None
