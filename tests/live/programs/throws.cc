// Throws and catches once for each line that it reads.
#include <cstdio>

static void thrower(int number) { throw number; }

int main() {
  char line[64];
  setvbuf(stdout, nullptr, _IOLBF, 0);
  puts("ready");
  for (int i = 0; fgets(line, sizeof line, stdin); i++) {
    try {
      thrower(i);
    } catch (int caught) {
      printf("caught %d\n", caught);
    }
  }
}
