/* One process alone that hops all the time: each lives for a moment, so that a list of processes is out of date when it is
   read. They share their memory, since copying it would take longer. */
#include "attack.h"

static char stacks[2][65536];
static unsigned long hops;

static int hop(void *unused) {
    (void)unused;
    if (++hops % 1000 == 1) prove("hops", hops);
    while (clone(hop, stacks[hops % 2] + sizeof stacks[0], CLONE_VM, NULL) < 0) continue;
    _exit(0);
}

int main(void) {
    be_deaf();
    daemonize();
    return hop(NULL);
}
