/* reloader-holder FD PID: keeps the arena's memfd open until process PID, and all that it forked, have ended.
 *
 * The target keeps no descriptor of ours, and opening one's own /proc/PID/map_files needs privileges. So a
 * daemon that comes later opens /proc/HOLDER/fd/3 instead.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KEPT_FD 3

static void close_all_but_kept(void) {
  int null = open("/dev/null", O_RDWR);
  for (int fd = 0; fd < KEPT_FD && null >= 0; fd++) dup2(null, fd);
  if (syscall(SYS_close_range, KEPT_FD + 1, ~0u, 0) == 0) return;
  for (int fd = KEPT_FD + 1; fd < sysconf(_SC_OPEN_MAX); fd++) close(fd);
}

/* The daemon has the file mapped, too, but not as code. */
static int runs_code_of(const char *pid, unsigned long inode) {
  char path[64], line[512], protection[8];
  unsigned long found;
  int runs = 0;
  snprintf(path, sizeof path, "/proc/%.20s/maps", pid);
  FILE *maps = fopen(path, "re");
  while (maps && !runs && fgets(line, sizeof line, maps))
    runs = sscanf(line, "%*s %7s %*s %*s %lu", protection, &found) == 2 && found == inode && protection[2] == 'x' &&
           strstr(line, "/memfd:reloader");
  if (maps) fclose(maps);
  return runs;
}

/* A descriptor that tells the end of a process with the arena, -1 if none is left. */
static int open_survivor(void) {
  struct stat file;
  int found = -1;
  DIR *folder = opendir("/proc");
  if (fstat(KEPT_FD, &file)) return -1;
  for (struct dirent *entry; folder && found < 0 && (entry = readdir(folder));)
    if (atoi(entry->d_name) > 0 && runs_code_of(entry->d_name, file.st_ino))
      found = (int)syscall(SYS_pidfd_open, atoi(entry->d_name), 0);
  if (folder) closedir(folder);
  return found;
}

int main(int count, char **arguments) {
  if (count != 3) return 2;
  int memfd = atoi(arguments[1]);
  int pid = atoi(arguments[2]);
  if (memfd != KEPT_FD && dup2(memfd, KEPT_FD) < 0) return 1;
  close_all_but_kept();
  setsid();
  prctl(PR_SET_NAME, "reloader-holder");
  signal(SIGHUP, SIG_IGN);
  if (chdir("/")) return 1;
  int target = (int)syscall(SYS_pidfd_open, pid, 0);
  if (target < 0) return 1;
  for (; target >= 0; target = open_survivor()) {
    struct pollfd wait = {.fd = target, .events = POLLIN};
    while (poll(&wait, 1, -1) < 0) continue;
    close(target);
  }
  return 0;
}
