/* Answers the unwinders' look-ups for addresses in the arena.
 *
 * Registering frames neither scales nor is safe, so nothing is registered: libgcc asks _dl_find_object, LLVM's
 * libunwind asks dl_iterate_phdr, and both questions come here first. Preloaded, our symbols win by order;
 * injected, the import tables of the loaded modules are patched. The directory is one immutable sorted table,
 * published by the pointer in slot 0, so the look-up takes no lock and works in signal handlers.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <dlfcn.h>
#include <link.h>
#include <string.h>
#include <sys/mman.h>

typedef int (*iterate_callback)(struct dl_phdr_info *, size_t, void *);
typedef int (*iterate_function)(iterate_callback, void *);
typedef int (*find_function)(void *, struct dl_find_object *);

static iterate_function real_iterate;
static find_function real_find;
static struct link_map *main_map;

static void *real_symbol(const char *library, const char *name) {
  void *handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
  void *found = handle ? dlsym(handle, name) : NULL;
  if (handle) dlclose(handle);
  return found;
}

__attribute__((constructor(101))) void reloader_unwind_prepare(void) {
  if (real_iterate) return;
  /* libc.so.6 exports it (seen in 2.36), although ld.so holds the tables that it reads */
  real_find = (find_function)real_symbol("libc.so.6", "_dl_find_object");
  if (!real_find) real_find = (find_function)real_symbol("ld-linux-x86-64.so.2", "_dl_find_object");
  main_map = _r_debug.r_map;
  real_iterate = (iterate_function)real_symbol("libc.so.6", "dl_iterate_phdr");
}

static const struct reloader_unwind_directory *directory(void) {
  const struct reloader_control *control = reloader_control;
  if (!control) return NULL;
  const uint64_t *slots = (const uint64_t *)control->regions[RELOADER_SLOTS].addr;
  return (const void *)__atomic_load_n(&slots[RELOADER_SLOT_UNWIND], __ATOMIC_ACQUIRE);
}

static const struct reloader_unwind_entry *find_entry(uint64_t pc) {
  const struct reloader_unwind_directory *table = directory();
  if (!table) return NULL;
  uint64_t low = 0, high = table->count;
  while (low < high) {
    uint64_t middle = (low + high) / 2;
    if (table->entries[middle].end <= pc)
      low = middle + 1;
    else
      high = middle;
  }
  const struct reloader_unwind_entry *entry = &table->entries[low];
  return low < table->count && entry->start <= pc ? entry : NULL;
}

static int in_code(uint64_t pc) {
  const struct reloader_control *control = reloader_control;
  return control && pc - control->regions[RELOADER_CODE].addr < control->regions[RELOADER_CODE].size;
}

static int find_object(void *pc, struct dl_find_object *result) {
  if (!in_code((uint64_t)pc)) {
    if (!real_find) reloader_unwind_prepare();
    return real_find ? real_find(pc, result) : -1;
  }
  const struct reloader_unwind_entry *entry = find_entry((uint64_t)pc);
  if (!entry) return -1;
  memset(result, 0, sizeof *result);
  result->dlfo_map_start = (void *)entry->start;
  result->dlfo_map_end = (void *)entry->end;
  result->dlfo_link_map = main_map;
  result->dlfo_eh_frame = (void *)entry->eh_frame_hdr_addr;
  return 0;
}

static int report(const struct reloader_unwind_entry *entry, iterate_callback callback, void *data) {
  ElfW(Phdr) headers[2] = {
      {.p_type = PT_LOAD, .p_flags = PF_R | PF_X, .p_vaddr = entry->start, .p_memsz = entry->end - entry->start},
      {.p_type = PT_GNU_EH_FRAME, .p_flags = PF_R, .p_vaddr = entry->eh_frame_hdr_addr, .p_memsz = 8},
  };
  struct dl_phdr_info info = {.dlpi_name = "reloader", .dlpi_phdr = headers, .dlpi_phnum = 2};
  return callback(&info, sizeof info, data);
}

static int iterate_phdr(iterate_callback callback, void *data) {
  if (!real_iterate) reloader_unwind_prepare();
  int stop = real_iterate ? real_iterate(callback, data) : 0;
  const struct reloader_unwind_directory *table = directory();
  for (uint64_t i = 0; !stop && table && i < table->count; i++) stop = report(&table->entries[i], callback, data);
  return stop;
}

/* Aliases, because inside this library the plain names may mean the C library's functions. */
RELOADER_EXPORT int _dl_find_object(void *, struct dl_find_object *) __attribute__((alias("find_object")));
RELOADER_EXPORT int dl_iterate_phdr(iterate_callback, void *) __attribute__((alias("iterate_phdr")));

struct module {
  const ElfW(Sym) *symbols;
  const char *names;
  const ElfW(Rela) *tables[2];
  uint64_t sizes[2];
  uint64_t base;
};

static uint64_t at(const struct module *module, uint64_t value) {
  return value < module->base ? module->base + value : value; /* ld.so relocates most of d_ptr in place */
}

static void read_dynamic(struct module *module, const ElfW(Dyn) *entry) {
  for (; entry->d_tag != DT_NULL; entry++) {
    uint64_t value = entry->d_un.d_val;
    if (entry->d_tag == DT_SYMTAB) module->symbols = (void *)at(module, value);
    if (entry->d_tag == DT_STRTAB) module->names = (void *)at(module, value);
    if (entry->d_tag == DT_JMPREL) module->tables[0] = (void *)at(module, value);
    if (entry->d_tag == DT_PLTRELSZ) module->sizes[0] = value;
    if (entry->d_tag == DT_RELA) module->tables[1] = (void *)at(module, value);
    if (entry->d_tag == DT_RELASZ) module->sizes[1] = value;
  }
}

static int protection_at(const struct dl_phdr_info *info, uint64_t address) {
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *p = &info->dlpi_phdr[i];
    if (p->p_type == PT_GNU_RELRO && address - (info->dlpi_addr + p->p_vaddr) < p->p_memsz) return PROT_READ;
  }
  return PROT_READ | PROT_WRITE;
}

static void write_import(const struct dl_phdr_info *info, uint64_t address, uint64_t value) {
  uint64_t *entry = (uint64_t *)address;
  void *page = (void *)(address & ~(RELOADER_PAGE - 1));
  int protection = protection_at(info, address);
  if (*entry == value) return;
  if (protection == PROT_READ && mprotect(page, RELOADER_PAGE, PROT_READ | PROT_WRITE)) return;
  __atomic_store_n(entry, value, __ATOMIC_RELEASE);
  if (protection == PROT_READ) mprotect(page, RELOADER_PAGE, protection);
}

static uint64_t replacement(const char *name) {
  if (!strcmp(name, "_dl_find_object")) return (uint64_t)find_object;
  if (!strcmp(name, "dl_iterate_phdr")) return (uint64_t)iterate_phdr;
  return 0;
}

static int patch_module(struct dl_phdr_info *info, size_t size, void *count) {
  struct module module = {.base = info->dlpi_addr};
  (void)size;
  for (int i = 0; i < info->dlpi_phnum; i++)
    if (info->dlpi_phdr[i].p_type == PT_DYNAMIC)
      read_dynamic(&module, (void *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr));
  if (!module.symbols || !module.names || !strncmp(info->dlpi_name, "linux-vdso", 10)) return 0;
  for (int table = 0; table < 2; table++) {
    const ElfW(Rela) *relocation = module.tables[table];
    for (uint64_t n = module.sizes[table] / sizeof *relocation; relocation && n; n--, relocation++) {
      uint64_t type = ELF64_R_TYPE(relocation->r_info);
      if (type != R_X86_64_JUMP_SLOT && type != R_X86_64_GLOB_DAT && type != R_X86_64_64) continue;
      uint64_t value = replacement(module.names + module.symbols[ELF64_R_SYM(relocation->r_info)].st_name);
      if (!value) continue;
      write_import(info, module.base + relocation->r_offset, value);
      ++*(int *)count;
    }
  }
  return 0;
}

int reloader_unwind_patch(void) {
  int count = 0;
  if (!real_iterate) reloader_unwind_prepare();
  if (real_iterate) real_iterate(patch_module, &count);
  return count;
}
