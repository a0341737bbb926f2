"""What compilers make of C, one feature an object: two versions, and answers that differ.

Every feature is a function `int NAME(int)` in an object of its own. `before` and `after` are
questions with the answers of the first and the second version, in the order they are asked;
the state that a feature keeps shows in them.
"""

from tests.support.feature import NOINLINE, Feature
from tests.support.features_data import DATA_FEATURES

CODE_FEATURES = (
    Feature(
        "jump_table",
        """
        int jump_table(int n)
        {
            switch (n) {
            case 0: return 11; case 1: return n * 7 + 3; case 2: return 35;
                case 3: return n - 90;
            case 4: return 52; case 5: return 6 % (n + 1); case 6: return 77;
                case 7: return n << n;
            default: return -1;
            }
        }
        """,
        (
            ("case 2: return 35", "case 2: return 36"),
            ("return 77;", "return 78; case 8: return n * n + 1;"),
        ),
        ((0, 11), (2, 35), (3, -87), (6, 77), (7, 896), (8, -1)),
        ((0, 11), (2, 36), (3, -87), (6, 78), (7, 896), (8, 65), (9, -1)),
    ),
    Feature(
        "static_locals",
        NOINLINE
        + """
        NOINLINE static int first(void) { static int count = 10; return ++count; }
        NOINLINE static int second(void) { static int count = 20; static char text[3] = "a";
            text[0]++; return ++count + text[0] - 'a'; }
        int static_locals(int n) { static int count; count += n;
            return first() * 10000 + second() * 100 + count; }
        """,
        (
            (
                "{ static int count = 10;",
                "{ static int fresh = 3; static int count = 10; fresh++;",
            ),
            ("return ++count;", "return ++count + fresh;"),
        ),
        ((1, 112201), (1, 122402)),
        ((1, 172603), (1, 192804)),
        ((1, 153005), (1, 163206)),
    ),
    Feature(
        "const_pointers",
        NOINLINE
        + """
        NOINLINE static int one(int n) { return n + 1; }
        NOINLINE static int two(int n) { return n + 2; }
        struct row { const char *name; int (*call)(int); const struct row *other; };
        static const struct row rows[] = { {"one", one, &rows[1]}, {"two", two, &rows[0]} };
        int const_pointers(int n) { const struct row *r = rows + n % 2;
            return r->call(n) * 1000 + r->other->name[1]; }
        """,
        (
            (
                "static const struct row rows[]",
                """NOINLINE static int six(int n) { return n * 6; }
                static const struct row rows[3]""",
            ),
            ('{"one", one, &rows[1]}', '{"uno", six, &rows[1]}'),
            ('{"two", two, &rows[0]}', '{"two", two, &rows[2]}, {"dos", one, 0}'),
        ),
        ((0, 1000 + ord("w")), (1, 3000 + ord("n"))),
        ((2, 12000 + ord("w")), (1, 3000 + ord("o"))),
    ),
    Feature(
        "held_pointer",
        NOINLINE
        + """
        NOINLINE static int target(int n) { return n + 500; }
        static int (*held)(int);
        int held_pointer(int n)
        {
            if (!held) held = target;
            return held(n) * (held == target ? 1 : -1);
        }
        """,
        (("n + 500", "n * 2 + 700"),),
        ((1, 501),),
        ((1, 702),),
    ),
    Feature(
        "strings",
        """
        static const char *pick(int n) { return n ? "the quick brown fox" : "brown fox"; }
        int strings(int n) { const char *s = pick(n); int sum = 0;
            while (*s) sum = sum * 3 % 9973 + *s++; return sum; }
        """,
        (('"brown fox"', '"brown fix"'),),
        ((0, 6004), (1, 449)),
        ((0, 5986), (1, 449)),
    ),
    Feature(
        "floats",
        NOINLINE
        + """
        NOINLINE static double scale(double x) { return x * 2.5 + 0.125; }
        NOINLINE static float negate(float x) { return -x * 1.5f; }
        NOINLINE static double size(double x) { return __builtin_fabs(x) + 1e-3; }
        NOINLINE static long double wide(long double x) { return x * 3.25L; }
        int floats(int n) {
            return (int)(scale(n) * 1000) + (int)negate((float)n) + (int)size(-n) * 7
                + (int)wide(n); }
        """,
        (("2.5 + 0.125", "3.5 + 0.25"), ("1.5f", "4.5f"), ("3.25L", "9.5L")),
        ((4, 10125 - 6 + 28 + 13),),
        ((4, 14250 - 18 + 28 + 38),),
    ),
    Feature(
        "structs",
        NOINLINE
        + """
        struct big { int values[20]; double d; char tail[5]; };
        struct two { long a, b; };
        struct mixed { double d; int i; };
        NOINLINE static struct big make(int n)
        {
            struct big made = {{1, 2, 3}, 0.5, "tail"};
            for (int i = 3; i < 20; i++) made.values[i] = n * i;
            return made;
        }
        NOINLINE static struct two both(struct big b, struct mixed m) {
            struct two t = {b.values[19], (long)(m.d * m.i) + b.tail[3]}; return t; }
        int structs(int n)
        {
            struct mixed m = {1.5, n};
            struct two t = both(make(n), m);
            return (int)(t.a * 1000 + t.b);
        }
        """,
        (
            ("{{1, 2, 3}, 0.5", "{{1, 2, 3, 4, 5, 6}, 0.75"),
            ('"tail"', '"talk"'),
            ("n * i", "n * i + 1"),
        ),
        ((2, 38000 + 3 + ord("l")),),
        ((2, 39000 + 3 + ord("k")),),
    ),
    Feature(
        "varargs",
        NOINLINE
        + """
        #include <stdarg.h>
        NOINLINE static int sum(int count, ...)
        {
            va_list list; int total = 0;
            va_start(list, count);
            while (count--) { total += va_arg(list, int) * 2;
                total += (int)va_arg(list, double); }
            va_end(list);
            return total;
        }
        int varargs(int n) { return sum(6, n, 1.0, n, 2.0, n, 3.0, n, 4.0, n, 5.0, n, 100.0); }
        """,
        (("* 2;", "* 3;"), ("100.0", "200.0")),
        ((1, 127),),
        ((1, 233),),
    ),
    Feature(
        "tail_calls",
        NOINLINE
        + """
        NOINLINE static int loop(int n, int sum) { if (n <= 0) return sum;
            return loop(n - 1, sum + n); }
        NOINLINE static int even(int n);
        NOINLINE static int odd(int n) { return n == 0 ? 0 : even(n - 1); }
        NOINLINE static int even(int n) { return n == 0 ? 1 : odd(n - 1); }
        NOINLINE static int fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
        int tail_calls(int n) { return loop(n, 0) * 1000 + even(n) * 100 + fib(n); }
        """,
        (("sum + n", "sum + n * 2"), ("n == 0 ? 1", "n == 0 ? 3"), ("n < 2 ? n", "n < 2 ? 1")),
        ((10, 55155), (9, 45034)),
        ((10, 110000 + 300 + 89), (9, 90055)),
    ),
    Feature(
        "long_jumps",
        NOINLINE
        + """
        #include <setjmp.h>
        static jmp_buf place;
        NOINLINE static void leap(int n) { if (n % 2) longjmp(place, n + 40); }
        int long_jumps(int n)
        {
            volatile int kept = n * 2;
            int came = setjmp(place);
            if (came) return came * 100 + kept;
            leap(n);
            return -kept;
        }
        """,
        (("n + 40", "n + 60"), ("came * 100", "came * 1000")),
        ((3, 4306), (4, -8)),
        ((3, 63006), (4, -8)),
    ),
    Feature(
        "weak_names",
        """
        __attribute__((weak)) int nobody_has_this(int);
        __attribute__((weak)) int weak_here(int n) { return n * 3; }
        __attribute__((weak)) int weak_value = 8;
        int weak_names(int n) {
            return weak_here(n) + weak_value++ + (nobody_has_this ? 1000 : 0); }
        """,
        (("n * 3", "n * 50"),),
        ((1, 11), (1, 12)),
        ((1, 60), (1, 61)),
        ((1, 15), (1, 16)),
    ),
    Feature(
        "clones",
        NOINLINE
        + """
        extern int puts(const char *);
        extern void abort(void);
        struct pair { int a, b; };
        NOINLINE static int isra(struct pair *p) { return p->a * 2; }
        NOINLINE static int constant(int n, int k) { int sum = 0; for (int i = 0; i < n;
            i++) sum += i * k; return sum; }
        static int partial(int n)
        {
            if (__builtin_expect(n < 0, 0)) { puts("negative"); puts("never"); puts("again");
                abort(); }
            return n + 1;
        }
        NOINLINE static int cold(int n)
        {
            if (__builtin_expect(n == 12345, 0)) { puts("cold"); abort(); }
            return n * 5;
        }
        int clones(int n) { struct pair p = {n, 9};
            return isra(&p) + constant(n, 3) + partial(n) + partial(n + 1) + cold(n); }
        """,
        (
            ("return p->a * 2;", "return p->a * 2 + p->b;"),
            ("constant(n, 3)", "constant(n, 3) + constant(3, n)"),
            ('{ puts("cold"); abort(); }', "return 3;"),
        ),
        ((4, 8 + 18 + 5 + 6 + 20),),
        ((4, 17 + 18 + 12 + 5 + 6 + 20),),
    ),
)

FEATURES = CODE_FEATURES + DATA_FEATURES
