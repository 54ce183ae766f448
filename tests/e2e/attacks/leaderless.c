/* Its first thread ends: proc(5) shows a zombie, and the others work on. */
#include "attack.h"

__attribute__((noreturn)) static void *work(void *unused) {
    (void)unused;
    for (unsigned long beats = 1;; beats++) {
        prove("beats", beats);
        usleep(20000);
    }
}

int main(void) {
    be_deaf();
    daemonize();
    pthread_t thread;
    for (int at = 0; at < 4; at++) pthread_create(&thread, 0, work, 0);
    pthread_exit(0);
}
