/* A call that keeps the runtime: C code that never looks at signals. */
#define CAML_NAME_SPACE
#include <caml/mlvalues.h>
#include <unistd.h>

value waits_hold(value fd)
{
    char byte;
    return Val_long(read(Int_val(fd), &byte, 1));
}
