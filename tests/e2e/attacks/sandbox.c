/* Stands for a setuid program that makes a pid namespace for whoever starts it, and gives its rights up: such are the sandboxes
   of browsers. */
#include "attack.h"

int main(void) {
    if (unshare(CLONE_NEWPID) != 0) return 1;
    if (fork() == 0) {
        uid_t uid = getuid();
        if (setresuid(uid, uid, uid) != 0) _exit(2);
        /* The first process of the namespace: it lives as long as this one does. */
        setsid();
        int null = open("/dev/null", O_RDWR);
        for (int fd = 0; fd < 3; fd++) dup2(null, fd);
        be_deaf();
        for (unsigned long beats = 1;; beats++) {
            prove("beats", beats);
            usleep(20000);
        }
    }
    return 0;
}
