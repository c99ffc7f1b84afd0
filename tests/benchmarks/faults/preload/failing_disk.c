/* A disk below FAILING_DISK (part of a path) of which one call in FAILING_ONE_IN fails with EIO.

   Reading, writing, flushing, opening and renaming are counted alike; FAILING_SEED decides which calls it hits. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static _Atomic uint64_t calls;

static int concerns(const char *path)
{
    const char *part = getenv("FAILING_DISK");
    return part && path && strstr(path, part) != NULL;
}

static int concerns_handle(int handle)
{
    char link[64], path[4096];
    ssize_t length;
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    length = readlink(link, path, sizeof path - 1);
    if (length <= 0)
        return 0;
    path[length] = 0;
    return concerns(path);
}

/* The next number of a row that looks random and is the same for the same seed (SplitMix64). */
static int fails(void)
{
    const char *seed = getenv("FAILING_SEED"), *one_in = getenv("FAILING_ONE_IN");
    uint64_t state = strtoull(seed ? seed : "0", NULL, 10) * 0x9E3779B97F4A7C15ull;
    uint64_t every = strtoull(one_in ? one_in : "1000", NULL, 10);
    state += (atomic_fetch_add(&calls, 1) + 1) * 0x9E3779B97F4A7C15ull;
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9ull;
    state = (state ^ (state >> 27)) * 0x94D049BB133111EBull;
    if (every == 0 || (state ^ (state >> 31)) % every)
        return 0;
    errno = EIO;
    return 1;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define ON_HANDLE(name, result, arguments, given) \
    result name arguments \
    { \
        REAL(name); \
        if (concerns_handle(handle) && fails()) \
            return -1; \
        return real given; \
    }

ON_HANDLE(read, ssize_t, (int handle, void *to, size_t n), (handle, to, n))
ON_HANDLE(pread, ssize_t, (int handle, void *to, size_t n, off_t at), (handle, to, n, at))
ON_HANDLE(pread64, ssize_t, (int handle, void *to, size_t n, off64_t at), (handle, to, n, at))
ON_HANDLE(write, ssize_t, (int handle, const void *of, size_t n), (handle, of, n))
ON_HANDLE(fsync, int, (int handle), (handle))

int rename(const char *from, const char *to)
{
    REAL(rename);
    if (concerns(to) && fails())
        return -1;
    return real(from, to);
}

#define OPENS(name) \
    int name(const char *path, int how, ...) \
    { \
        mode_t mode = 0; \
        va_list more; \
        REAL(name); \
        if (how & (O_CREAT | O_TMPFILE)) { \
            va_start(more, how); \
            mode = va_arg(more, mode_t); \
            va_end(more); \
        } \
        if (concerns(path) && fails()) \
            return -1; \
        return real(path, how, mode); \
    }

OPENS(open)
OPENS(open64)
