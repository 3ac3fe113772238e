/* A wall clock that a test sets while the process runs, by the seconds that the file STEPPED_CLOCK holds. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>

static volatile int64_t *ahead;
static int (*real_gettime)(clockid_t, struct timespec *);
static int (*real_timedwait)(cnd_t *, mtx_t *, const struct timespec *);

__attribute__((constructor)) static void begin(void) {
    if (ahead) return;
    real_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    real_timedwait = dlsym(RTLD_NEXT, "cnd_timedwait");
    ahead = mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, open(getenv("STEPPED_CLOCK"), O_RDONLY), 0);
}

int clock_gettime(clockid_t id, struct timespec *now) {
    begin();
    int result = real_gettime(id, now);
    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) now->tv_sec += *ahead;
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    (void)zone;
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    *now = (struct timeval){found.tv_sec, found.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *into) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (into) *into = found.tv_sec;
    return found.tv_sec;
}

/* As the kernel has it: what counts is when the clock shows the time, not how long that is as of the call. */
int cnd_timedwait(cnd_t *condition, mtx_t *mutex, const struct timespec *until) {
    for (;;) {
        struct timespec now, soon;
        clock_gettime(CLOCK_REALTIME, &now);
        int64_t left = (until->tv_sec - now.tv_sec) * 1000000000 + until->tv_nsec - now.tv_nsec;
        int64_t slice = left < 0 ? 0 : left < 20000000 ? left : 20000000;
        real_gettime(CLOCK_REALTIME, &soon);
        soon.tv_nsec += slice;
        soon.tv_sec += soon.tv_nsec / 1000000000;
        soon.tv_nsec %= 1000000000;
        int result = real_timedwait(condition, mutex, &soon);
        if (result != thrd_timedout || left <= slice) return result;
    }
}
