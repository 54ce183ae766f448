/* The uids of a process are those of its threads: a program with the set-user-ID bit of an accomplice gives its first thread
   the accomplice's uid alone, and another thread the caller's. */
#include "attack.h"

static uid_t caller, author;

__attribute__((noreturn)) static void *work(void *unused) {
    (void)unused;
    if (syscall(SYS_setresuid, caller, caller, caller) != 0) _exit(1);
    for (unsigned long beats = 1;; beats++) {
        int fd = open("/tmp/proof.thread", O_WRONLY | O_CREAT | O_TRUNC, 0644);
        if (fd >= 0) {
            dprintf(fd, "beats %lu\n", beats);
            close(fd);
        }
        usleep(20000);
    }
}

int main(void) {
    pthread_t thread;
    caller = getuid(), author = geteuid();
    be_deaf();
    daemonize();
    pthread_create(&thread, 0, work, 0);
    usleep(100000);
    if (syscall(SYS_setresuid, author, author, author) != 0) return 1;
    for (;;) pause();
}
