/* A file system that knows no locks, such as Lustre mounted without them. */
#include <errno.h>

int flock(int handle, int how)
{
    (void)handle;
    (void)how;
    errno = ENOLCK;
    return -1;
}
