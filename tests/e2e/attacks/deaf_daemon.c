/* Leaves parent, session and terminal, ignores every signal that can be ignored, and blocks the rest. */
#include "attack.h"

int main(void) {
    be_deaf();
    daemonize();
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, 0);
    for (unsigned long beats = 1;; beats++) {
        prove("beats", beats);
        usleep(20000);
    }
}
