/* Lets one file operation fail. Loaded before the C library into the program as it is shipped (LD_PRELOAD), which so needs no seam for it.
 *
 * FAULT_UNDER  operations on paths that begin with this, and on what was opened there, are counted
 * FAULT_CLASS  the class of which one fails; see `enum`
 * FAULT_AT     which, from 1; 0: none
 * FAULT_ERRNO  what it fails with; 0: it does half of what was asked (short), or says that the file ends (FAULT_END=1)
 * FAULT_LOG    where the counts go when the process ends
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { OPEN, CREATE, READ, WRITE, FSYNC, TRUNCATE, RENAME, MKDIR, REMOVE, STAT, LIST, CHMOD, CLASSES };
static const char *const names[CLASSES] = {"open", "create", "read", "write", "fsync", "truncate", "rename", "mkdir", "remove", "stat", "list", "chmod"};
static int counts[CLASSES], fails = -1, fails_at, fails_with, ends;
static const char *under;
static char ours[65536];

__attribute__((constructor)) static void begin(void) {
    const char *class = getenv("FAULT_CLASS"), *at = getenv("FAULT_AT"), *with = getenv("FAULT_ERRNO");
    under = getenv("FAULT_UNDER");
    fails_at = at ? atoi(at) : 0;
    fails_with = with ? atoi(with) : 0;
    ends = getenv("FAULT_END") != NULL;
    for (int k = 0; class && k < CLASSES; k++)
        if (!strcmp(class, names[k])) fails = k;
}

__attribute__((destructor)) static void finish(void) {
    const char *log = getenv("FAULT_LOG");
    under = NULL;
    FILE *file = log ? fopen(log, "w") : NULL;
    for (int k = 0; file && k < CLASSES; k++) fprintf(file, "%s %d\n", names[k], counts[k]);
    if (file) fclose(file);
}

static int path_is_ours(const char *path) { return under && path && !strncmp(path, under, strlen(under)); }
static int fd_is_ours(int fd) { return under && fd >= 0 && fd < (int)sizeof ours && ours[fd]; }

/* Whether this one fails; sets errno. 2: it is to be short. */
static int hit(int class) {
    if (__atomic_add_fetch(&counts[class], 1, __ATOMIC_SEQ_CST) != fails_at || class != fails) return 0;
    if (!fails_with) return 2;
    errno = fails_with;
    return 1;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int opened(int fd, int counted) {
    if (fd >= 0 && fd < (int)sizeof ours) ours[fd] = counted;
    return fd;
}

#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        int counted = path_is_ours(path); \
        if (counted && hit(flags & O_CREAT ? CREATE : OPEN) == 1) return -1; \
        return opened(real(path, flags, mode), counted); \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        int counted = path_is_ours(path) || fd_is_ours(folder); \
        if (counted && hit(flags & O_CREAT ? CREATE : OPEN) == 1) return -1; \
        return opened(real(folder, path, flags, mode), counted); \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

int close(int fd) {
    REAL(close);
    if (fd >= 0 && fd < (int)sizeof ours) ours[fd] = 0;
    return real(fd);
}

#define MOVES(name, class, type, arguments, values, halved) \
    ssize_t name arguments { \
        REAL(name); \
        switch (fd_is_ours(fd) ? hit(class) : 0) { \
        case 1: return -1; \
        case 2: if (ends) return 0; return real halved; \
        default: return real values; \
        } \
    }
#define HALF(n) ((n) / 2 ? (n) / 2 : 1)
MOVES(read, READ, ssize_t, (int fd, void *to, size_t n), (fd, to, n), (fd, to, HALF(n)))
MOVES(pread, READ, ssize_t, (int fd, void *to, size_t n, off_t at), (fd, to, n, at), (fd, to, HALF(n), at))
MOVES(pread64, READ, ssize_t, (int fd, void *to, size_t n, off64_t at), (fd, to, n, at), (fd, to, HALF(n), at))
MOVES(write, WRITE, ssize_t, (int fd, const void *from, size_t n), (fd, from, n), (fd, from, HALF(n)))
MOVES(pwrite, WRITE, ssize_t, (int fd, const void *from, size_t n, off_t at), (fd, from, n, at), (fd, from, HALF(n), at))
MOVES(pwrite64, WRITE, ssize_t, (int fd, const void *from, size_t n, off64_t at), (fd, from, n, at), (fd, from, HALF(n), at))

ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t n, unsigned flags) {
    REAL(copy_file_range);
    switch (fd_is_ours(to) ? hit(WRITE) : 0) {
    case 1: return -1;
    case 2: return real(from, a, to, b, HALF(n), flags);
    default: return real(from, a, to, b, n, flags);
    }
}

#define BY_FD(name, class, arguments, values) \
    int name arguments { \
        REAL(name); \
        return fd_is_ours(fd) && hit(class) == 1 ? -1 : real values; \
    }
BY_FD(fsync, FSYNC, (int fd), (fd))
BY_FD(fdatasync, FSYNC, (int fd), (fd))
BY_FD(ftruncate, TRUNCATE, (int fd, off_t n), (fd, n))
BY_FD(ftruncate64, TRUNCATE, (int fd, off64_t n), (fd, n))
BY_FD(fchmod, CHMOD, (int fd, mode_t mode), (fd, mode))

#define BY_PATH(name, class, arguments, values) \
    int name arguments { \
        REAL(name); \
        return path_is_ours(path) && hit(class) == 1 ? -1 : real values; \
    }
BY_PATH(rename, RENAME, (const char *path, const char *to), (path, to))
BY_PATH(mkdir, MKDIR, (const char *path, mode_t mode), (path, mode))
BY_PATH(unlink, REMOVE, (const char *path), (path))
BY_PATH(rmdir, REMOVE, (const char *path), (path))
BY_PATH(chmod, CHMOD, (const char *path, mode_t mode), (path, mode))
BY_PATH(stat64, STAT, (const char *path, struct stat64 *to), (path, to))
BY_PATH(lstat64, STAT, (const char *path, struct stat64 *to), (path, to))
BY_FD(fstat64, STAT, (int fd, struct stat64 *to), (fd, to))

int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    return (path_is_ours(path) || fd_is_ours(folder)) && hit(REMOVE) == 1 ? -1 : real(folder, path, flags);
}

int statx(int folder, const char *path, int flags, unsigned mask, struct statx *to) {
    REAL(statx);
    /* The standard library asks with no path and no buffer whether there is such a call, which the header rules out. */
    const char *volatile asked = path;
    struct statx *volatile buffer = to;
    int counted = asked && buffer && (*asked ? path_is_ours(asked) : fd_is_ours(folder));
    return counted && hit(STAT) == 1 ? -1 : real(folder, path, flags, mask, to);
}

DIR *opendir(const char *path) {
    REAL(opendir);
    int counted = path_is_ours(path);
    if (counted && hit(LIST) == 1) return NULL;
    DIR *found = real(path);
    if (found) opened(dirfd(found), counted);
    return found;
}

struct dirent64 *readdir64(DIR *folder) {
    REAL(readdir64);
    return fd_is_ours(dirfd(folder)) && hit(LIST) == 1 ? NULL : real(folder);
}
