/* Maps linked memory at its addresses, calls into it, prints the answer. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unwind.h>

static uint64_t code_first, code_end, header;
int host_calls;
__thread int host_thread = 40;
__thread int host_other = 2;
static __thread char padding[24] __attribute__((aligned(32), used)) = {1};

int host_add(int a, int b) { host_calls++; return a + b; }

/* libgcc asks this; the real agent answers in the same way. */
int _dl_find_object(void *pc, struct dl_find_object *out)
{
    static int (*next)(void *, struct dl_find_object *);
    uint64_t at = (uint64_t)pc;
    if (at >= code_first && at < code_end) {
        out->dlfo_flags = 0;
        out->dlfo_map_start = (void *)code_first;
        out->dlfo_map_end = (void *)code_end;
        out->dlfo_link_map = NULL;
        out->dlfo_eh_frame = (void *)header;
        return 0;
    }
    if (!next)
        next = (int (*)(void *, struct dl_find_object *))dlsym(RTLD_NEXT, "_dl_find_object");
    return next(pc, out);
}

static int seen_code, seen_main;
int main(int, char **);
static _Unwind_Reason_Code frame(struct _Unwind_Context *context, void *unused)
{
    (void)unused;
    uint64_t at = _Unwind_GetIP(context);
    seen_code += at >= code_first && at < code_end;
    seen_main += _Unwind_GetRegionStart(context) == (uint64_t)main;
    return _URC_NO_REASON;
}
int host_walk(void)
{
    seen_code = seen_main = 0;
    _Unwind_Backtrace(frame, NULL);
    return seen_code * 10 + seen_main;
}

int main(int argc, char **argv)
{
    FILE *in = fopen(argv[1], "rb");
    uint64_t head[6], part[3];
    if (argc < 2 || !in || fread(head, 8, 6, in) != 6)
        return 9;
    code_first = head[2];
    code_end = head[3];
    header = head[4];
    for (uint64_t i = 0; i < head[0]; i++) {
        if (fread(part, 8, 3, in) != 3)
            return 8;
        void *at = mmap((void *)part[0], part[1], PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        if (at != (void *)part[0] || fread(at, 1, part[1], in) != part[1])
            return 7;
        if (mprotect(at, part[1], (int)part[2]))
            return 6;
    }
    printf("%d\n", ((int (*)(int))head[1])((int)head[5]));
    return 0;
}
