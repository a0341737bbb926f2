"""The second part of `features.py`: variables, library data, frames."""

from tests.support.feature import NOINLINE, Feature

DATA_FEATURES = (
    Feature(
        "thread_locals",
        """
        __thread int thread_count = 5;
        static __thread long thread_sum;
        __thread int thread_array[40];
        int thread_locals(int n) { thread_array[n] += 2; thread_sum += n;
            return ++thread_count * 10000 + (int)thread_sum * 100 + thread_array[n]; }
        """,
        (("thread_sum += n", "thread_sum += n * 2"),),
        ((3, 60302), (3, 70604)),
        ((3, 81206), (3, 91808)),
        ((3, 102110), (3, 112412)),
    ),
    Feature(
        "computed_goto",
        """
        int computed_goto(int n)
        {
            static const void *const labels[] = {&&add, &&twice, &&stop};
            static const unsigned char program[] = {0, 1, 0, 1, 2};
            const unsigned char *at = program;
            goto *labels[*at++];
        add: n += 3; goto *labels[*at++];
        twice: n *= 2; goto *labels[*at++];
        stop: return n;
        }
        """,
        (
            ("&&stop};", "&&stop, &&minus};"),
            ("{0, 1, 0, 1, 2}", "{0, 1, 3, 1, 2}"),
            ("stop: return n;", "minus: n -= 100; goto *labels[*at++];\nstop: return n;"),
        ),
        ((1, 22),),
        ((1, -184),),
    ),
    Feature(
        "common_names",
        """
        int common_one;
        long common_array[30];
        int common_names(int n) { common_array[n]++; common_one += n;
            return common_one * 100 + (int)common_array[n]; }
        """,
        (("common_one * 100", "common_one * 1000"),),
        ((2, 201), (2, 402)),
        ((2, 6003), (2, 8004)),
        ((2, 1005), (2, 1206)),
    ),
    Feature(
        "callbacks",
        """
        #include <stdlib.h>
        static int upwards(const void *a, const void *b) {
            return *(const int *)a - *(const int *)b; }
        int callbacks(int n)
        {
            int values[] = {5, 3, n, 9, 1};
            qsort(values, 5, sizeof values[0], upwards);
            return values[0] * 10000 + values[2] * 100 + values[4];
        }
        """,
        (("*(const int *)a - *(const int *)b", "*(const int *)b - *(const int *)a"),),
        ((7, 10509),),
        ((7, 90501),),
    ),
    Feature(
        "frames",
        NOINLINE
        + """
        #include <string.h>
        NOINLINE static int fill(char *out, int n) { memset(out, n, (size_t)n);
            return out[n - 1]; }
        int frames(int n)
        {
            char some[n + 1], many[5000];
            many[4999] = (char)n;
            return fill(some, n) + fill(many, n * 2) * 10 + many[4999] * 1000;
        }
        """,
        (
            ("many[5000]", "many[9000]"),
            ("many[4999] = (char)n", "many[8000] = (char)(n + 1)"),
            ("many[4999] *", "many[8000] *"),
        ),
        ((3, 3 + 60 + 3000),),
        ((3, 3 + 60 + 4000),),
    ),
    Feature(
        "wide_numbers",
        NOINLINE
        + """
        NOINLINE static __int128 wide(long n) {
            return (__int128)n * 1000000007L * 1000000007L; }
        int wide_numbers(int n) {
            return (int)(wide(n) >> 40) % 100000 + (int)((unsigned long)wide(n) % 97); }
        """,
        (("(__int128)n *", "(__int128)(n + 1) *"),),
        ((5, 47536),),
        ((5, 57063),),
    ),
    Feature(
        "library_data",
        """
        #include <stdio.h>
        #include <errno.h>
        #include <ctype.h>
        extern char **environ;
        int library_data(int n) { errno = n;
            return (stdout != NULL) + (environ != NULL) * 10 + errno * 100 + (isdigit('0'
                + n) != 0) * 10000; }
        """,
        (("* 10000", "* 20000 + (fileno(stderr) == 2) * 100000"),),
        ((3, 10311),),
        ((3, 120311),),
    ),
    Feature(
        "far_data",
        NOINLINE
        + """
        #include <getopt.h>
        #include <stdio.h>
        NOINLINE static int number(FILE *a, FILE *b, int n) {
            return fileno(a) + fileno(b) * 10 + n * 100; }
        NOINLINE static int same(FILE **a, int *b) { return *a != NULL && *b == 1; }
        int far_data(int n) {
            return number(stdout, stdout, n) + same(NULL == stdout ? NULL : &stdout,
                &(int){1}) * 1000; }
        """,
        (
            ("number(stdout, stdout, n)", "number(stderr, stdin, n + optind + opterr)"),
            ("&(int){1}", "&optopt == NULL ? NULL : &optind"),
            ("NULL == stdout ? NULL : &stdout", "&stderr"),
        ),
        ((3, 1311),),
        ((3, 1502),),
    ),
    Feature(
        "loops",
        """
        static const int weights[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
        static int values[64];
        int loops(int n)
        {
            int sum = 0;
            for (int i = 0; i < 64; i++) values[i] += n;
            for (int i = 0; i < 64; i++) sum += values[i] * weights[i % 16];
            return sum;
        }
        """,
        (("{1, 2, 3, 4,", "{2, 2, 3, 4,"),),
        ((1, 544), (1, 1088)),
        ((1, 1644), (1, 2192)),
        ((1, 2720), (1, 3264)),
    ),
    Feature(
        "inner_addresses",
        """
        static int grid[8][4] = {{1}, {2}, {3, 30}, {4}};
        static int *const middle = &grid[2][1];
        int *inner_cursor = &grid[3][0];
        int inner_addresses(int n) { *middle += n; return *middle * 100 + *inner_cursor++; }
        """,
        (("*middle * 100", "*middle * 1000"),),
        ((1, 3104), (1, 3200)),
        ((1, 33000), (1, 34000)),
        ((1, 3500), (1, 3600)),
    ),
)
