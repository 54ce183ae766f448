/* Hops from process to process faster than anybody lists them: each forks one and ends, some at a time. Its argument is how
   long each lives, in microseconds. */
#include "attack.h"

int main(int argc, char **argv) {
    unsigned life = argc > 1 ? strtoul(argv[1], 0, 10) : 1000;
    be_deaf();
    daemonize();
    unsigned long *forks = mmap(0, sizeof *forks, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int at = 0; at < 9; at++)
        if (fork() == 0) break;
    for (;;) {
        pid_t child = fork();
        if (child > 0) _exit(0);
        if (child < 0) continue;
        setsid();
        unsigned long count = __atomic_add_fetch(forks, 1, __ATOMIC_RELAXED);
        if (count % 50 == 0) prove("forks", count);
        usleep(life);
    }
}
