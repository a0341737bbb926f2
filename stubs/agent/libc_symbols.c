/* What the C library needs of a caller that is in no module it knows.
 *
 * A destructor of a thread-local object is kept by the C library in mangled form, where no scan finds it; freed
 * code would be called at the thread's end. So registrations of loaded code come here, and are counted by
 * their object's __dso_handle: while one is outstanding, the object cannot be unloaded.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct owner {
  struct owner *next;
  void *handle;
  uint64_t count;
};

struct record {
  void (*destroy)(void *);
  void *object;
  struct owner *owner;
};

static struct owner *owners; /* grows only: one an object */
static pthread_mutex_t adding = PTHREAD_MUTEX_INITIALIZER;

extern int __cxa_thread_atexit_impl(void (*)(void *), void *, void *);

static struct owner *find_owner(void *handle) {
  struct owner *owner = __atomic_load_n(&owners, __ATOMIC_ACQUIRE);
  while (owner && owner->handle != handle) owner = owner->next;
  return owner;
}

static struct owner *take_owner(void *handle) {
  struct owner *owner = find_owner(handle);
  if (owner) return owner;
  pthread_mutex_lock(&adding);
  owner = find_owner(handle);
  if (!owner && (owner = calloc(1, sizeof *owner))) {
    owner->handle = handle;
    owner->next = owners;
    __atomic_store_n(&owners, owner, __ATOMIC_RELEASE);
  }
  pthread_mutex_unlock(&adding);
  return owner;
}

static void destroy(void *data) {
  struct record record = *(struct record *)data;
  free(data);
  record.destroy(record.object);
  __atomic_sub_fetch(&record.owner->count, 1, __ATOMIC_SEQ_CST);
}

static int thread_atexit(void (*function)(void *), void *object, void *handle) {
  struct record *record = malloc(sizeof *record);
  struct owner *owner = record ? take_owner(handle) : NULL;
  if (!owner) {
    free(record);
    return -1;
  }
  *record = (struct record){function, object, owner};
  __atomic_add_fetch(&owner->count, 1, __ATOMIC_SEQ_CST);
  int failed = __cxa_thread_atexit_impl(destroy, record, &owners);
  if (failed) {
    __atomic_sub_fetch(&owner->count, 1, __ATOMIC_SEQ_CST);
    free(record);
  }
  return failed;
}

uint64_t reloader_thread_atexits(uint64_t handle) {
  struct owner *owner = find_owner((void *)handle);
  return owner ? __atomic_load_n(&owner->count, __ATOMIC_SEQ_CST) : 0;
}

/* What every module has of its own from libgcc.a is there in libgcc_s for old programs, under its old version only. */
uint64_t reloader_old_symbol(const char *name) {
  if (strncmp(name, "__cpu_", 6)) return 0;
  return (uint64_t)dlvsym(RTLD_DEFAULT, name, "GCC_4.8.0");
}

/* Look-ups that must not give what dlsym gives. */
uint64_t reloader_own_symbol(const char *name) {
  if (!strcmp(name, "__cxa_thread_atexit") || !strcmp(name, "__cxa_thread_atexit_impl")) return (uint64_t)thread_atexit;
  return 0;
}
