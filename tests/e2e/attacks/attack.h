/* What the attacks share: each proves that it is at work by a file that the test waits for and reads. */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

/* Writes how often the attack has done what it does, as "WHAT COUNT". */
__attribute__((unused)) static void prove(const char *what, unsigned long count) {
    char path[64], line[96];
    snprintf(path, sizeof path, "/tmp/proof.%u.%s", getuid(), what);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0) return;
    int length = snprintf(line, sizeof line, "%s %lu\n", what, count);
    if (write(fd, line, length) < 0) _exit(1);
    close(fd);
}

/* Deaf to what asks a process to end. */
__attribute__((unused)) static void be_deaf(void) {
    for (int number = 1; number < 32; number++)
        if (number != SIGCHLD) signal(number, SIG_IGN);
    signal(SIGCHLD, SIG_IGN);
}

/* Leaves parent, session and terminal. */
__attribute__((unused)) static void daemonize(void) {
    if (fork() > 0) _exit(0);
    setsid();
    if (fork() > 0) _exit(0);
    int null = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; fd++) dup2(null, fd);
}

/* Calls `each` with every process that has `uid` as its effective uid and is neither this one nor its child. */
__attribute__((unused)) static void each_of(uid_t uid, void (*each)(pid_t)) {
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    while (proc && (entry = readdir(proc))) {
        if (!isdigit((unsigned char)entry->d_name[0])) continue;
        char path[64], line[256];
        snprintf(path, sizeof path, "/proc/%.20s/status", entry->d_name);
        FILE *status = fopen(path, "r");
        if (!status) continue;
        unsigned real = 0, effective = 0;
        while (fgets(line, sizeof line, status))
            if (sscanf(line, "Uid: %u %u", &real, &effective) == 2) break;
        fclose(status);
        pid_t pid = atoi(entry->d_name);
        if (effective == uid && pid != getpid()) each(pid);
    }
    if (proc) closedir(proc);
}
