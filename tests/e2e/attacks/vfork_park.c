/* Parks in uninterruptible-looking places: a vfork parent that waits for a child that never ends, and threads in fork. */
#include "attack.h"

__attribute__((noreturn)) static void *forking(void *unused) {
    (void)unused;
    for (unsigned long forks = 1;; forks++) {
        pid_t child = fork();
        if (child == 0) {
            usleep(5000);
            _exit(0);
        }
        if (forks % 100 == 1) prove("forks", forks);
        if (child > 0) waitpid(child, 0, 0);
    }
}

int main(void) {
    be_deaf();
    signal(SIGCHLD, SIG_DFL);
    daemonize();
    pthread_t thread;
    for (int at = 0; at < 4; at++) pthread_create(&thread, 0, forking, 0);
    if (vfork() == 0)
        for (;;) pause();
    return 0;
}
