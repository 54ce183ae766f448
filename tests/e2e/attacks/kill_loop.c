/* Kills whatever else has its uid, by number, as soon as it shows up. */
#include "attack.h"

static unsigned long kills;

static void strike(pid_t pid) {
    if (kill(pid, SIGKILL) == 0) kills++;
}

int main(void) {
    be_deaf();
    daemonize();
    for (unsigned long looks = 1;; looks++) {
        each_of(getuid(), strike);
        if (looks % 20 == 1) prove("looks", looks), prove("kills", kills);
    }
}
