/* A program with the set-user-id bit of its author: whoever else runs it can keep the author's uid as the effective one
   alone. */
#include "attack.h"

int main(void) {
    uid_t real = getuid(), effective = geteuid();
    if (setresuid(real, effective, real) != 0) return 1;
    be_deaf();
    daemonize();
    for (;;) {
        int fd = open("/tmp/proof.lend", O_WRONLY | O_CREAT | O_TRUNC, 0644);
        if (fd >= 0) {
            dprintf(fd, "real %u effective %u\n", getuid(), geteuid());
            close(fd);
        }
        usleep(20000);
    }
}
