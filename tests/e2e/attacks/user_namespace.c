/* root in a user namespace of its own, with a child in one more below that. */
#include "attack.h"

static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) _exit(1);
    close(fd);
}

static void nest(void) {
    char map[64];
    uid_t uid = geteuid();
    gid_t gid = getegid();
    if (unshare(CLONE_NEWUSER) != 0) _exit(2);
    put("/proc/self/setgroups", "deny");
    snprintf(map, sizeof map, "0 %u 1", uid);
    put("/proc/self/uid_map", map);
    snprintf(map, sizeof map, "0 %u 1", gid);
    put("/proc/self/gid_map", map);
}

int main(void) {
    be_deaf();
    daemonize();
    nest();
    if (fork() == 0) nest();
    for (unsigned long beats = 1;; beats++) {
        char path[64], line[64];
        snprintf(path, sizeof path, "/tmp/proof.namespace.%d", getpid());
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
        int length = snprintf(line, sizeof line, "beats %lu as %u\n", beats, getuid());
        if (write(fd, line, length) < 0) _exit(1);
        close(fd);
        usleep(20000);
    }
}
