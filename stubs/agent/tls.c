/* Room for thread-local variables that the program was not linked with.
 *
 * The reserve is an initial-exec variable of this library: every thread, old or new, has it at one distance from its
 * thread pointer. New threads copy it from this library's TLS init image, so a variable's initial value is
 * written there; what living threads have, the daemon writes from outside. The image lies in memory that the dynamic
 * linker has made read-only, hence the moment of mprotect.
 *
 * Which units are taken stands in the control region: the process itself is the book, whoever the daemon is.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <dlfcn.h>
#include <link.h>
#include <string.h>
#include <sys/mman.h>

#ifndef RELOADER_THREAD_RESERVE
#define RELOADER_THREAD_RESERVE RELOADER_THREAD_MOST
#endif

static uint64_t thread_pointer(void) { return (uint64_t)__builtin_thread_pointer(); }

#if RELOADER_THREAD_RESERVE
/* Not zero, or it would be .tbss, which has no image. */
static __thread __attribute__((aligned(64), tls_model("initial-exec"))) char reserve[RELOADER_THREAD_RESERVE] = {1};

struct image {
  uint64_t addr; /* of the reserve in the init image, 0: not found */
  uint64_t relro_start, relro_end;
};

/* The reserve is the only thread-local variable here, so the image is the reserve. */
static int find_image(struct dl_phdr_info *info, size_t size, void *data) {
  struct image *image = data;
  int ours = 0;
  (void)size;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *p = &info->dlpi_phdr[i];
    if (p->p_type == PT_LOAD && (uint64_t)find_image - (info->dlpi_addr + p->p_vaddr) < p->p_memsz) ours = 1;
  }
  if (!ours) return 0;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *p = &info->dlpi_phdr[i];
    uint64_t start = info->dlpi_addr + p->p_vaddr;
    if (p->p_type == PT_TLS && p->p_filesz == sizeof reserve) image->addr = start;
    if (p->p_type == PT_GNU_RELRO) {
      image->relro_start = start & ~(RELOADER_PAGE - 1);
      image->relro_end = (start + p->p_memsz) & ~(RELOADER_PAGE - 1);
    }
  }
  return 1;
}

static struct image own_image(void) {
  struct image image = {0, 0, 0};
  dl_iterate_phdr(find_image, &image);
  return image;
}

void reloader_threads_prepare(struct reloader_control *control) {
  struct image image = own_image();
  control->thread_offset = (uint64_t)reserve - thread_pointer();
  control->thread_size = image.addr ? sizeof reserve : 0;
}

uint64_t reloader_threads_write(uint64_t offset, uint64_t size, const char *bytes) {
  struct image image = own_image();
  if (!image.addr || offset > sizeof reserve || size > sizeof reserve - offset) return (uint64_t)-1;
  uint64_t start = image.addr + offset;
  uint64_t first = start & ~(RELOADER_PAGE - 1), end = (start + size + RELOADER_PAGE - 1) & ~(RELOADER_PAGE - 1);
  if (mprotect((void *)first, end - first, PROT_READ | PROT_WRITE)) return (uint64_t)-1;
  memcpy((void *)start, bytes, size);
  if (first < image.relro_start) first = image.relro_start;
  if (end > image.relro_end) end = image.relro_end;
  if (first < end) mprotect((void *)first, end - first, PROT_READ);
  return 0;
}
#else
void reloader_threads_prepare(struct reloader_control *control) { control->thread_offset = control->thread_size = 0; }

uint64_t reloader_threads_write(uint64_t offset, uint64_t size, const char *bytes) {
  (void)offset, (void)size, (void)bytes;
  return (uint64_t)-1;
}
#endif

/* The distance of a library's variable from the thread pointer, if it is the same in every thread: then it lies in
 * the block that the C library allocates with the thread. 0: not defined, 1: elsewhere. */
uint64_t reloader_thread_offset(const char *name) {
  typedef void (*static_info)(size_t *, size_t *);
  static_info info = (static_info)dlsym(RTLD_DEFAULT, "_dl_get_tls_static_info");
  uint64_t here = thread_pointer(), found = (uint64_t)dlsym(RTLD_DEFAULT, name);
  size_t size = 0, align = 0;
  if (!found) return 0;
  if (info) info(&size, &align);
  return here - found <= size && found < here ? found - here : 1;
}
