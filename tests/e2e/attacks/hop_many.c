/* Chains of processes that are each another one after a moment, and look after each other: a chain that was killed is begun anew by
   another. At most 150 processes at once, those that nobody has waited for among them. Arguments: how long each lives, in microseconds, and how many chains there are, 40 if that is not given. */
#include "attack.h"
#include <time.h>

enum { CHAINS = 40 };

static struct {
    volatile unsigned long beat[CHAINS];
    volatile unsigned long total;
} *shared;

static unsigned life;
static int chains = CHAINS;

static unsigned long now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000UL + now.tv_nsec / 1000;
}

static void chain(int me) {
    for (;;) {
        unsigned long hops = __atomic_add_fetch(&shared->total, 1, __ATOMIC_RELAXED), now = now_us();
        shared->beat[me] = now;
        if (hops % 500 == 1) prove("hops", hops);
        int other = chains > 1 ? (int)((me + 1 + hops % (chains - 1)) % chains) : me;
        unsigned long seen = shared->beat[other];
        if (other != me && now > seen + 100000 && __sync_bool_compare_and_swap(&shared->beat[other], seen, now) && fork() == 0) {
            me = other;
            setsid();
            continue;
        }
        usleep(life);
        pid_t child = fork();
        if (child > 0) _exit(0);
        if (child == 0) setsid();
    }
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    life = strtoul(argv[1], NULL, 10);
    if (argc > 2) chains = atoi(argv[2]);
    if (chains < 1 || chains > CHAINS) return 2;
    struct rlimit few = {150, 150};
    if (setrlimit(RLIMIT_NPROC, &few) != 0) return 1;
    be_deaf();
    daemonize();
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) return 1;
    unsigned long now = now_us();
    for (int at = 0; at < CHAINS; at++) shared->beat[at] = now;
    for (int at = 1; at < chains; at++)
        if (fork() == 0) {
            setsid();
            chain(at);
        }
    chain(0);
}
