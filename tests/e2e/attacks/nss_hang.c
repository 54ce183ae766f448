/* A service of nsswitch.conf whose directory never answers iamctl; everybody else is told at once that it has no such account. */
#define _GNU_SOURCE
#include <errno.h>
#include <nss.h>
#include <pwd.h>
#include <string.h>
#include <unistd.h>

static enum nss_status answer(int *errnop) {
    while (strcmp(program_invocation_short_name, "iamctl") == 0) pause();
    *errnop = ENOENT;
    return NSS_STATUS_NOTFOUND;
}

enum nss_status _nss_hang_getpwuid_r(uid_t uid, struct passwd *result, char *buffer, size_t length, int *errnop) {
    (void)uid, (void)result, (void)buffer, (void)length;
    return answer(errnop);
}

enum nss_status _nss_hang_getpwnam_r(const char *name, struct passwd *result, char *buffer, size_t length, int *errnop) {
    (void)name, (void)result, (void)buffer, (void)length;
    return answer(errnop);
}
