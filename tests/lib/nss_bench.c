/* Times the entry points of an NSS module, called directly as glibc calls them.
 *
 *     nss_bench LIBRARY SERVICE passwd|uid|initgroups KEY GID LOOKUPS THREADS
 *
 * Prints the nanoseconds of a lookup: the first one of the process, and the average of the others in each thread. Then the status of the
 * last one as in nss.h, how many had another result than the first one, the open descriptors, and the resident memory in KiB.
 */

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <grp.h>
#include <nss.h>
#include <pthread.h>
#include <pwd.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef enum nss_status by_name(const char *, struct passwd *, char *, size_t, int *);
typedef enum nss_status by_uid(uid_t, struct passwd *, char *, size_t, int *);
typedef enum nss_status groups_of(const char *, gid_t, long *, long *, gid_t **, long, int *);

static void *entry;
static const char *what, *key;
static gid_t gid;
static long lookups;
static unsigned long expected;
static atomic_long others;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

/* Returns the status, and in `result` a number that differs if the entry does. */
static enum nss_status look_up(unsigned long *result) {
    struct passwd found;
    char buffer[4096];
    int error;
    enum nss_status status;
    found.pw_uid = 0;
    if (strcmp(what, "passwd") == 0) {
        status = ((by_name *)entry)(key, &found, buffer, sizeof buffer, &error);
        *result = found.pw_uid;
        return status;
    }
    if (strcmp(what, "uid") == 0) {
        status = ((by_uid *)entry)((uid_t)strtoul(key, NULL, 10), &found, buffer, sizeof buffer, &error);
        *result = found.pw_uid;
        return status;
    }
    long start = 0, size = 64;
    gid_t *groups = malloc((size_t)size * sizeof *groups);
    status = ((groups_of *)entry)(key, gid, &start, &size, &groups, -1, &error);
    *result = (unsigned long)start;
    free(groups);
    return status;
}

static void *loop(void *result) {
    double began = now();
    unsigned long found;
    for (long at = 0; at < lookups; at++) {
        look_up(&found);
        if (found != expected)
            others++;
    }
    *(double *)result = (now() - began) / (double)lookups;
    return NULL;
}

int main(int count, char **arguments) {
    if (count != 8)
        return 2;
    what = arguments[3], key = arguments[4], gid = (gid_t)strtoul(arguments[5], NULL, 10);
    lookups = strtol(arguments[6], NULL, 10);
    long threads = strtol(arguments[7], NULL, 10);
    void *library = dlopen(arguments[1], RTLD_NOW);
    char name[64];
    snprintf(name, sizeof name, "_nss_%s_%s", arguments[2],
             strcmp(what, "passwd") == 0 ? "getpwnam_r" : strcmp(what, "uid") == 0 ? "getpwuid_r" : "initgroups_dyn");
    entry = library ? dlsym(library, name) : NULL;
    if (!entry || threads < 1 || threads > 64) {
        fprintf(stderr, "nss_bench: %s\n", dlerror());
        return 1;
    }
    double began = now();
    look_up(&expected);
    printf("%.0f", now() - began);
    pthread_t running[64];
    double times[64];
    for (int warm_up = 0; warm_up < 10; warm_up++)
        look_up(&expected);
    for (long at = 0; at < threads; at++)
        pthread_create(&running[at], NULL, loop, &times[at]);
    for (long at = 0; at < threads; at++) {
        pthread_join(running[at], NULL);
        printf(" %.0f", times[at]);
    }
    unsigned long last;
    int status = look_up(&last), descriptors = -1;
    DIR *folder = opendir("/proc/self/fd");
    while (readdir(folder))
        descriptors++;
    long pages = 0;
    FILE *memory = fopen("/proc/self/statm", "r");
    if (!memory || fscanf(memory, "%*d %ld", &pages) != 1)
        return 1;
    /* ".", ".." and the descriptor of the folder itself do not count. */
    printf(" %d %ld %d %ld\n", status, others, descriptors - 2, pages * 4);
    return 0;
}
