/* Tries every way to hide from, or get in the way of, what keeps sessions: the register, the socket's folder, the locks, the
   list of what a sweep did. Says how many it tried and how many worked. */
#include "attack.h"

int main(void) {
    static const char *paths[] = {"/run/pam_iam", "/run/pam_iam/sessions", "/run/pam_iam/resolver.sock",
                                  "/run/pam_iam/sweep.json", "/run/pam_iam/mapped-gids", "/var/lib/pam_iam",
                                  "/var/lib/pam_iam/served", "/var/cache/pam_iam"};
    unsigned long tried = 0, worked = 0;
    for (size_t at = 0; at < sizeof paths / sizeof *paths; at++) {
        char other[128];
        snprintf(other, sizeof other, "%s.moved", paths[at]);
        worked += rename(paths[at], other) == 0;
        worked += unlink(paths[at]) == 0;
        worked += rmdir(paths[at]) == 0;
        worked += chmod(paths[at], 0777) == 0;
        snprintf(other, sizeof other, "%s/mine", paths[at]);
        int fd = open(other, O_WRONLY | O_CREAT, 0644);
        worked += fd >= 0;
        tried += 5;
    }
    printf("tried %lu worked %lu\n", tried, worked);
    return 0;
}
