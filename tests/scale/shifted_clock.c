/* Preloaded into a process, this moves its wall clock. The monotonic clock stays as it is.

   The file CLOCK_TABLE is shared memory: a count of the processes that have begun, then the seconds by which the clock
   of each is moved, the first one's first. Whoever writes them sets a clock while its process runs. A process that
   becomes another program (exec) keeps its row: CLOCK_ROW says whose it is.

   libfaketime 0.9.10 can't do that: it either moves the monotonic clock too, after which timed waits of threads end at
   once or minutes late, or breaks sleeping until a monotonic time. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define ROWS 64

static volatile long *mine;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CLOCK_TABLE");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    long *table = mmap(NULL, ROWS * sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (table == MAP_FAILED) return;
    const char *known = getenv("CLOCK_ROW");
    long process, row;
    if (!known || sscanf(known, "%ld %ld", &process, &row) != 2 || process != getpid()) {
        char text[64];
        row = __atomic_fetch_add(table, 1, __ATOMIC_SEQ_CST) % (ROWS - 1);
        snprintf(text, sizeof text, "%ld %ld", (long)getpid(), row);
        setenv("CLOCK_ROW", text, 1);
    }
    mine = table + 1 + row;
}

int clock_gettime(clockid_t clock, struct timespec *out) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, out);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) out->tv_sec += mine ? *mine : 0;
    return failed;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    (void)zone;
    struct timespec now;
    int failed = clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
