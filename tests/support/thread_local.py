"""Programs with threads that begin at different times, for thread-local variables."""

# Asked n < 100: thread n // 10 (0: main) answers `answer(n % 10)`. 100: one more thread begins.
THREADED = """
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
int answer(int);
static struct worker {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    int asked, done, n, result;
} workers[16];
static int count;
static void *work(void *argument)
{
    struct worker *w = argument;
    pthread_mutex_lock(&w->lock);
    for (;;) {
        while (w->asked == w->done) pthread_cond_wait(&w->wake, &w->lock);
        w->result = answer(w->n);
        w->done = w->asked;
        pthread_cond_broadcast(&w->wake);
    }
    return NULL;
}
static void begin(void)
{
    pthread_t thread;
    struct worker *w = &workers[++count];
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->wake, NULL);
    pthread_create(&thread, NULL, work, w);
}
static int ask(struct worker *w, int n)
{
    pthread_mutex_lock(&w->lock);
    w->n = n;
    w->asked++;
    pthread_cond_broadcast(&w->wake);
    while (w->asked != w->done) pthread_cond_wait(&w->wake, &w->lock);
    pthread_mutex_unlock(&w->lock);
    return w->result;
}
int main(void)
{
    char line[64];
    setvbuf(stdout, NULL, _IOLBF, 0);
    begin();
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        int n = atoi(line);
        if (n == 100) { begin(); printf("%d\\n", count); continue; }
        printf("%d\\n", n < 10 ? answer(n) : ask(&workers[n / 10], n % 10));
    }
    return 0;
}
"""
