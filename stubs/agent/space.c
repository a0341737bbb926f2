/* Maps the arena: one memfd, five regions, near the main executable.
 *
 * Small-model code reaches +-2 GiB. Below a PIE, because the heap grows up behind it; at the top of the
 * low 2 GiB for a non-PIE program, because its code also holds 32-bit absolute addresses.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

#define GIB (1ull << 30)
#define REACH (2 * GIB - (16ull << 20)) /* some room for addends */
#define LOW_END 0x7fff0000ull
#define LOWEST 0x10000ull
#define SMALLEST (16ull << 20)
#define HOLES 64

struct range {
  uint64_t start, end;
};

static int first_module(struct dl_phdr_info *info, size_t size, void *data) {
  struct range *exe = data;
  (void)size;
  exe->start = UINT64_MAX;
  exe->end = 0;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *p = &info->dlpi_phdr[i];
    if (p->p_type != PT_LOAD) continue;
    uint64_t start = (info->dlpi_addr + p->p_vaddr) & ~(RELOADER_PAGE - 1);
    uint64_t end = (info->dlpi_addr + p->p_vaddr + p->p_memsz + RELOADER_PAGE - 1) & ~(RELOADER_PAGE - 1);
    if (start < exe->start) exe->start = start;
    if (end > exe->end) exe->end = end;
  }
  return 1; /* the main program comes first */
}

/* Reads /proc/self/maps without malloc: the thread may be a borrowed one. */
struct lines {
  int fd;
  char buffer[4096];
  size_t have, at;
};

static int next_char(struct lines *in) {
  if (in->at == in->have) {
    ssize_t n = read(in->fd, in->buffer, sizeof in->buffer);
    if (n <= 0) return -1;
    in->have = (size_t)n;
    in->at = 0;
  }
  return (unsigned char)in->buffer[in->at++];
}

static int next_mapping(struct lines *in, struct range *out) {
  uint64_t value = 0;
  int c, field = 0;
  while ((c = next_char(in)) >= 0) {
    if (field < 2 && ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) {
      value = value * 16 + (uint64_t)(c <= '9' ? c - '0' : c - 'a' + 10);
    } else if (field == 0 && c == '-') {
      out->start = value;
      value = 0;
      field = 1;
    } else if (field == 1) {
      out->end = value;
      value = 0;
      field = 2;
    }
    if (c == '\n') return 1;
  }
  return 0;
}

/* Highest start of a hole of `size` bytes inside [low, high); 0 if there is none. */
static uint64_t highest_hole(uint64_t low, uint64_t high, uint64_t size) {
  struct lines in = {.fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC)};
  if (in.fd < 0) return 0;
  uint64_t best = 0, previous = low;
  struct range map = {0, 0};
  int more = 1;
  while (more && previous < high) {
    more = next_mapping(&in, &map);
    if (!more) map.start = map.end = high;
    uint64_t end = map.start < high ? map.start : high;
    if (end > previous && end - previous >= size) best = end - size;
    if (map.end > previous) previous = map.end;
  }
  close(in.fd);
  return best;
}

static uint64_t reserve_at(uint64_t want, uint64_t size) {
  void *at = mmap((void *)want, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (at == MAP_FAILED) return 0;
  if ((uint64_t)at == want) return want;
  munmap(at, size); /* a kernel before 4.17 takes the address as a hint */
  return 0;
}

/* Another thread may map into the hole between our look and our reservation: look again. */
static uint64_t reserve_in(uint64_t low, uint64_t high, uint64_t size) {
  for (int tries = 0; tries < HOLES && high > low; tries++) {
    uint64_t hole = highest_hole(low, high, size);
    if (!hole) return 0;
    uint64_t got = reserve_at(hole, size);
    if (got) return got;
    if (errno != EEXIST) return 0;
  }
  return 0;
}

static uint64_t reserve(const struct range *exe, uint64_t size) {
  if (exe->end <= LOW_END) return reserve_in(LOWEST, LOW_END, size);
  uint64_t low = exe->end > REACH ? exe->end - REACH : LOWEST;
  if (low < LOWEST) low = LOWEST;
  uint64_t got = reserve_in(low, exe->start, size);
  return got ? got : reserve_in(exe->end, exe->start + REACH, size);
}

static int create_memfd(void) {
  int fd = (int)syscall(SYS_memfd_create, "reloader", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC);
  if (fd < 0 && errno == EINVAL) fd = (int)syscall(SYS_memfd_create, "reloader", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  return fd;
}

/* Growing a file beyond RLIMIT_FSIZE raises SIGXFSZ: lift the soft limit for the moment, or give up. */
static int grow(int fd, uint64_t size, int32_t *status) {
  struct rlimit old, lifted;
  if (getrlimit(RLIMIT_FSIZE, &old)) return -1;
  int low = old.rlim_cur != RLIM_INFINITY && old.rlim_cur < size;
  if (low) {
    lifted = old;
    lifted.rlim_cur = old.rlim_max;
    if (old.rlim_max < size || setrlimit(RLIMIT_FSIZE, &lifted)) {
      *status = RELOADER_FILE_LIMIT;
      errno = EFBIG;
      return -1;
    }
  }
  int failed = ftruncate(fd, (off_t)size);
  if (low) setrlimit(RLIMIT_FSIZE, &old);
  if (!failed) fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
  return failed;
}

static void place_regions(struct reloader_region *regions, const struct reloader_params *params, uint64_t shrink) {
  static const int order[] = {RELOADER_CONTROL, RELOADER_SLOTS, RELOADER_CODE, RELOADER_RODATA, RELOADER_DATA};
  uint64_t sizes[RELOADER_REGION_COUNT] = {
      [RELOADER_CODE] = (params->code_size ? params->code_size : 256ull << 20) >> shrink,
      [RELOADER_RODATA] = (params->rodata_size ? params->rodata_size : 128ull << 20) >> shrink,
      [RELOADER_DATA] = (params->data_size ? params->data_size : 128ull << 20) >> shrink,
      [RELOADER_SLOTS] = RELOADER_SLOT_COUNT * 8,
      [RELOADER_CONTROL] = RELOADER_CONTROL_SIZE,
  };
  uint64_t at = 0;
  for (int i = 0; i < RELOADER_REGION_COUNT; i++) {
    struct reloader_region *region = &regions[order[i]];
    region->size = (sizes[order[i]] + RELOADER_PAGE - 1) & ~(RELOADER_PAGE - 1);
    region->file_offset = at;
    region->addr = at; /* the base is added once it is known */
    at += region->size;
  }
}

static int map_region(int fd, const struct reloader_region *region, int protection, int sharing) {
  void *want = (void *)region->addr;
  return mmap(want, region->size, protection, sharing | MAP_FIXED | MAP_NORESERVE, fd, (off_t)region->file_offset) == want;
}

static int map_regions(int fd, const struct reloader_region *regions) {
  char name[40];
  snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
  int readonly = open(name, O_RDONLY | O_CLOEXEC); /* the slots can then never be made writable here */
  int ok = map_region(fd, &regions[RELOADER_CODE], PROT_READ | PROT_EXEC, MAP_PRIVATE) &&
           map_region(fd, &regions[RELOADER_RODATA], PROT_READ, MAP_PRIVATE) &&
           map_region(fd, &regions[RELOADER_DATA], PROT_READ | PROT_WRITE, MAP_PRIVATE) &&
           map_region(readonly >= 0 ? readonly : fd, &regions[RELOADER_SLOTS], PROT_READ, MAP_SHARED) &&
           map_region(fd, &regions[RELOADER_CONTROL], PROT_READ | PROT_WRITE, MAP_SHARED);
  int saved = errno;
  if (readonly >= 0) close(readonly);
  errno = saved;
  return ok;
}

static struct reloader_control *fail(struct reloader_params *params, int status) {
  if (!params->status) params->status = status;
  params->error = errno;
  if (params->memfd >= 0) close(params->memfd);
  params->memfd = -1;
  return NULL;
}

struct reloader_control *reloader_map_arena(struct reloader_params *params) {
  struct range exe = {0, 0};
  struct reloader_region regions[RELOADER_REGION_COUNT];
  uint64_t base = 0, size = 0;
  dl_iterate_phdr(first_module, &exe);
  params->status = RELOADER_OK;
  params->memfd = create_memfd();
  if (params->memfd < 0) return fail(params, RELOADER_NO_MEMFD);
  for (uint64_t shrink = 0; !base && shrink < 5; shrink++) {
    place_regions(regions, params, shrink);
    size = regions[RELOADER_DATA].file_offset + regions[RELOADER_DATA].size;
    if (shrink && regions[RELOADER_CODE].size < SMALLEST) break;
    base = reserve(&exe, size);
  }
  if (!base) return fail(params, RELOADER_NO_SPACE);
  for (int i = 0; i < RELOADER_REGION_COUNT; i++) regions[i].addr += base;
  if (grow(params->memfd, size, &params->status) || !map_regions(params->memfd, regions)) {
    munmap((void *)base, size);
    return fail(params, RELOADER_NO_MAP);
  }
  struct reloader_control *control = (void *)regions[RELOADER_CONTROL].addr;
  memcpy(control->regions, regions, sizeof regions);
  control->version = RELOADER_VERSION;
  control->header_size = sizeof *control;
  control->file_size = size;
  control->exe_start = exe.start;
  control->exe_end = exe.end;
  params->file_size = size;
  params->control_addr = (uint64_t)control;
  return control;
}
