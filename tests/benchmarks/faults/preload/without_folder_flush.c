/* A file system that flushes files and refuses to flush folders, such as CIFS and many of FUSE. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/stat.h>

int fsync(int handle)
{
    static int (*real)(int);
    struct stat about;
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    if (fstat(handle, &about) == 0 && S_ISDIR(about.st_mode)) {
        errno = EINVAL;
        return -1;
    }
    return real(handle);
}
