"""A C text to edit, with functions, tables and strings of every kind, and compiler flags."""

FLAGS = [
    ("-O0",),
    ("-O1", "-fno-pie"),
    ("-O2",),
    ("-O2", "-fPIC", "-fcommon"),
    ("-O2", "-ffunction-sections", "-fdata-sections"),
    ("-O2", "-g", "-fcf-protection=none"),
    ("-O3", "-fno-pie", "-ffunction-sections"),
]

SOURCE = r"""
#include <stdio.h>
#define APART __attribute__((noinline, noipa))
static int count;
int shared = 4;
int common_one;
static const int squares[] = {0, 1, 4, 9, 16, 25, 36, 49};
static const char *const words[] = {"alpha", "beta", "gamma"};
struct op { int (*run)(int); const char *name; };

APART int add(int x) { count += x; shared -= x; return count; }
APART int say(int x) { common_one++; return printf("hello %d\n", x); }
APART int square(int x) { return squares[x & 7] + shared; }
APART const char *word(int x) { return words[x % 3]; }
APART int pick(int x)
{
    switch (x) {
    case 0: return add(1);
    case 1: return say(7);
    case 2: return square(9);
    case 3: return puts("world");
    case 4: return shared;
    case 5: return add(66);
    case 6: return 11;
    }
    return 0;
}
APART int choose(int x)
{
    switch (x) {
    case 10: return say(1);
    case 11: return add(2);
    case 12: return square(3);
    case 13: return 10;
    case 14: return add(4);
    case 15: return 12;
    }
    return 1;
}
APART double half(double x) { return x * 0.5; }
static const struct op ops[] = {{add, "add"}, {square, "square"}};
APART int apply(int i, int x) { return ops[i].run(x) + (ops[i].name[0] == 'a'); }
APART int (*callback(void))(int) { return add; }
APART int wide(void) { return L"wide text"[count & 7]; }
"""
