/* For LD_PRELOAD: what a disk and a clock may do to a process, switched on and off while it runs.
 *
 * CHAOS_FAULTS names a file with a struct of orders, which is mapped; CHAOS_FOLDER is below what the disk has failed.
 * Only what the C library does for the process is caught, which is all that Python does.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct orders {
    int64_t clock_seconds; /* by which the time of day is off; no other clock is touched */
    int32_t sync_error;    /* errno of fsync and fdatasync of a file, 0 for none */
    int32_t sync_names_error; /* the same of a directory */
    int32_t change_error;  /* errno of what opens for writing, makes, renames or removes below the folder, and of pwrite */
};

static const struct orders none;
static const struct orders *orders = &none;
static const char *folder = "";

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("CHAOS_FAULTS");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        void *mapped = mmap(NULL, sizeof *orders, PROT_READ, MAP_SHARED, file, 0);
        if (mapped != MAP_FAILED)
            orders = mapped;
    }
    if (getenv("CHAOS_FOLDER"))
        folder = getenv("CHAOS_FOLDER");
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL(error) do { if (error) { errno = (error); return -1; } } while (0)
#define FAIL_BELOW(path) FAIL(strncmp(path, folder, strlen(folder)) == 0 ? orders->change_error : 0)

static int sync_error(int file)
{
    struct stat status;
    return fstat(file, &status) == 0 && S_ISDIR(status.st_mode) ? orders->sync_names_error : orders->sync_error;
}

int fsync(int file) { FAIL(sync_error(file)); return REAL(fsync)(file); }
int fdatasync(int file) { FAIL(sync_error(file)); return REAL(fdatasync)(file); }
ssize_t pwrite(int file, const void *data, size_t size, off_t start) { FAIL(orders->change_error); return REAL(pwrite)(file, data, size, start); }
ssize_t pwrite64(int file, const void *data, size_t size, off64_t start) { FAIL(orders->change_error); return REAL(pwrite64)(file, data, size, start); }
int rename(const char *from, const char *to) { FAIL_BELOW(to); return REAL(rename)(from, to); }
int unlink(const char *path) { FAIL_BELOW(path); return REAL(unlink)(path); }
int mkdir(const char *path, mode_t mode) { FAIL_BELOW(path); return REAL(mkdir)(path, mode); }

#define OPEN(name)                                                      \
    int name(const char *path, int flags, ...)                          \
    {                                                                   \
        va_list arguments;                                              \
        va_start(arguments, flags);                                     \
        mode_t mode = va_arg(arguments, mode_t);                        \
        va_end(arguments);                                              \
        if (flags & (O_CREAT | O_WRONLY | O_RDWR))                      \
            FAIL_BELOW(path);                                           \
        return REAL(name)(path, flags, mode);                           \
    }
OPEN(open)
OPEN(open64)

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static __typeof__(&clock_gettime) real;
    if (!real)
        real = REAL(clock_gettime);
    int status = real(clock, now);
    if (clock == CLOCK_REALTIME)
        now->tv_sec += orders->clock_seconds;
    return status;
}

time_t time(time_t *result)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result)
        *result = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int status = REAL(gettimeofday)(now, zone);
    now->tv_sec += orders->clock_seconds;
    return status;
}
