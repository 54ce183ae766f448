/* A subreaper: what its descendants leave behind becomes its own child, and what it leaves is handed on by clone with the
   same parent. */
#include "attack.h"

int main(void) {
    be_deaf();
    if (fork() > 0) return 0;
    setsid();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    for (unsigned long hops = 1;; hops++) {
        /* A sibling, not a child: its parent is ours. */
        pid_t sibling = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);
        if (sibling > 0) {
            prove("hops", hops);
            _exit(0);
        }
        usleep(2000);
    }
}
