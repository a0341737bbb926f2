"""Programs whose functions are redirected while they run: busy threads, or one that answers."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from tests.support.redirect import Child, compiled

Start = Callable[..., Child]

BUSY = """
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
atomic_long calls[3];
atomic_int leave;
__attribute__((noipa)) int old_one(int n) { calls[0]++; return n + 1; }
__attribute__((noipa)) int new_one(int n) { calls[1]++; return n + 2; }
__attribute__((noipa)) void *loop(void *unused)
{
    while (!leave) {
        int got = old_one(5);
        if (got != 6 && got != 7) calls[2]++;
    }
    return unused;
}
int main(void)
{
    pthread_t threads[8];
    char line[80];
    for (int i = 0; i < 8; i++) pthread_create(&threads[i], 0, loop, 0);
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        printf("%d %ld %ld\\n", old_one(5), calls[1] > 0, calls[2]);
        fflush(stdout);
    }
    leave = 1;
    for (int i = 0; i < 8; i++) pthread_join(threads[i], 0);
    return calls[2] != 0;
}
"""

ONE_THREAD = """
#include <stdio.h>
int value;
%s
int main(void)
{
    char line[80];
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        int n;
        sscanf(line, "%%d", &n);
        printf("%%d\\n", old_one(n));
        fflush(stdout);
    }
    return 0;
}
"""
SIMPLE = ONE_THREAD % (
    "__attribute__((noipa)) int old_one(int n) { value++; return n + 1; }\n"
    "__attribute__((noipa)) int new_one(int n) { value++; return n + 2; }"
)


@contextmanager
def starting(folder: Path) -> Generator[Start]:
    """Give what compiles and starts a text; each child has to end well with the block."""
    children: list[Child] = []

    def start(source: str, *flags: str) -> Child:
        child = Child(compiled(folder, source, *flags))
        children.append(child)
        assert child.line() == "ready"
        return child

    yield start
    for child in children:
        assert child.end() == 0
