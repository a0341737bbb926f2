#define CAML_NAME_SPACE
#include <caml/alloc.h>
#include <caml/memory.h>
#include <caml/mlvalues.h>
#include <math.h>
#include <stdio.h>

value kinds_twice(value n)
{
    return Val_long(2 * Long_val(n));
}

double kinds_root(double n)
{
    return sqrt(n);
}

value kinds_root_byte(value n)
{
    return caml_copy_double(kinds_root(Double_val(n)));
}

value kinds_greeting(value name)
{
    CAMLparam1(name);
    char text[64];
    snprintf(text, sizeof text, "hello %s", String_val(name));
    CAMLreturn(caml_copy_string(text));
}
