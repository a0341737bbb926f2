/* Calls a function that may throw, from plain C.
 *
 * The frame below has its own personality routine: every exception that reaches it is handled, by a landing pad
 * that returns the exception to the caller. A forced unwinding (pthread_exit) goes on.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <dlfcn.h>
#include <string.h>
#include <unwind.h>

struct caught {
  uint64_t value; /* the function's, or the exception's address */
  uint64_t thrown;
};

struct caught reloader_catching(const uint64_t *call); /* function, then six arguments */
extern const char reloader_landing[] __attribute__((visibility("hidden")));

__asm__(
    ".text\n"
    ".hidden reloader_catching, reloader_landing, reloader_personality\n"
    ".globl reloader_catching, reloader_landing\n"
    ".type reloader_catching, @function\n"
    "reloader_catching:\n"
    "  .cfi_startproc\n"
    "  .cfi_personality 0x1b, reloader_personality\n"
    "  endbr64\n"
    "  pushq %rbp\n"
    "  .cfi_def_cfa_offset 16\n"
    "  .cfi_offset %rbp, -16\n"
    "  movq %rsp, %rbp\n"
    "  .cfi_def_cfa_register %rbp\n"
    "  movq (%rdi), %rax\n"
    "  movq 16(%rdi), %rsi\n"
    "  movq 24(%rdi), %rdx\n"
    "  movq 32(%rdi), %rcx\n"
    "  movq 40(%rdi), %r8\n"
    "  movq 48(%rdi), %r9\n"
    "  movq 8(%rdi), %rdi\n"
    "  call *%rax\n"
    "  xorl %edx, %edx\n"
    "  popq %rbp\n"
    "  .cfi_remember_state\n"
    "  .cfi_def_cfa %rsp, 8\n"
    "  ret\n"
    "reloader_landing:\n"
    "  .cfi_restore_state\n"
    "  endbr64\n"
    "  movl $1, %edx\n"
    "  popq %rbp\n"
    "  .cfi_def_cfa %rsp, 8\n"
    "  ret\n"
    "  .cfi_endproc\n"
    ".size reloader_catching, .-reloader_catching\n");

__attribute__((visibility("hidden"), used)) _Unwind_Reason_Code reloader_personality(
    int version, _Unwind_Action actions, _Unwind_Exception_Class kind, struct _Unwind_Exception *exception,
    struct _Unwind_Context *context) {
  (void)version, (void)kind;
  if (actions & _UA_FORCE_UNWIND) return _URC_CONTINUE_UNWIND;
  if (actions & _UA_SEARCH_PHASE) return _URC_HANDLER_FOUND;
  if (!(actions & _UA_HANDLER_FRAME)) return _URC_CONTINUE_UNWIND;
  _Unwind_SetGR(context, 0, (_Unwind_Word)exception); /* rax */
  _Unwind_SetIP(context, (_Unwind_Ptr)reloader_landing);
  return _URC_INSTALL_CONTEXT;
}

/* The mangled name of the exception's type, where the program has a C++ runtime; the exception is gone then. */
static void dispose(struct _Unwind_Exception *exception, char *name, size_t size) {
  void *(*begin)(void *) = (void *(*)(void *))dlsym(RTLD_DEFAULT, "__cxa_begin_catch");
  void (*end)(void) = (void (*)(void))dlsym(RTLD_DEFAULT, "__cxa_end_catch");
  void **(*type)(void) = (void **(*)(void))dlsym(RTLD_DEFAULT, "__cxa_current_exception_type");
  *name = 0;
  if (!begin || !end) {
    _Unwind_DeleteException(exception);
    return;
  }
  begin(exception);
  void **info = type ? type() : NULL; /* std::type_info: vtable, then the name */
  if (info && info[1]) strncat(name, info[1], size - 1);
  end();
}

uint64_t reloader_call_catching(const uint64_t *call, uint64_t *reply) {
  struct caught caught = reloader_catching(call);
  reply[0] = caught.thrown;
  if (!caught.thrown) return caught.value;
  dispose((struct _Unwind_Exception *)caught.value, (char *)(reply + 1), RELOADER_REPLY_SIZE - 8);
  return 0;
}
