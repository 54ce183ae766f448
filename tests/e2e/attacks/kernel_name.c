/* Calls itself like a thread of the kernel, in its name and in its arguments. */
#include "attack.h"

int main(int argc, char **argv) {
    be_deaf();
    daemonize();
    prctl(PR_SET_NAME, "kworker/0:1)\nU");
    for (int at = 0; at < argc; at++) memset(argv[at], 0, strlen(argv[at]));
    for (unsigned long beats = 1;; beats++) {
        prove("beats", beats);
        usleep(20000);
    }
}
