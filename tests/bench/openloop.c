/* A client that sends at a fixed rate, whatever the answers do: latency counts from when a request was due.
 *
 * openloop PORT RATE SECONDS CONNECTIONS, the request on standard input: prints p50 and p99 in seconds.
 * There must be more connections than requests in flight at that rate, or what is measured is the wait for one.
 * In C, since it shares its cores with what it measures. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { LONGEST = 65536, EVENTS = 256 };
static const double TICK = 0.0001, PATIENCE = 5; /* seconds: requests due within a tick go together; for the last answers */

/* Request number n goes by connection n % connections, as its number n / connections. */
struct connection {
    int socket;
    long due, sent, answered;
    size_t length;
    char answer[LONGEST + 1];
};

static struct connection *all;
static char request[LONGEST];
static size_t size;
static long connections, done;
static double rate, begin, *taken;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void send_next(struct connection *to) {
    if (to->sent > to->answered || to->sent == to->due) return;
    if (write(to->socket, request, size) != (ssize_t)size) err(1, "a request was not taken at once");
    to->sent++;
}

static bool whole(const struct connection *from) {
    char *body = strstr(from->answer, "\r\n\r\n"), *length = strcasestr(from->answer, "\r\ncontent-length:");
    if (!body) return false;
    if (!length || length > body) errx(1, "an answer without Content-Length: %.200s", from->answer);
    return from->length >= body + 4 - from->answer + strtoul(length + 17, NULL, 10);
}

static void receive(struct connection *from) {
    ssize_t count = read(from->socket, from->answer + from->length, LONGEST - from->length);
    if (count <= 0) err(1, "a connection ended, or an answer is too long");
    from->answer[from->length += count] = 0;
    if (!whole(from)) return;
    if (strncmp(from->answer, "HTTP/1.1 2", 10)) errx(1, "%.200s", from->answer);
    long number = (from - all) + from->answered++ * connections;
    taken[done++] = now() - (begin + number / rate);
    from->length = 0;
    send_next(from);
}

static int ascending(const void *a, const void *b) {
    double difference = *(const double *)a - *(const double *)b;
    return (difference > 0) - (difference < 0);
}

int main(int count, char **words) {
    if (count != 5) errx(2, "usage: openloop PORT RATE SECONDS CONNECTIONS");
    struct sockaddr_in address = {AF_INET, htons(atoi(words[1])), {htonl(INADDR_LOOPBACK)}, {0}};
    rate = atof(words[2]), connections = atol(words[4]);
    long requests = ceil(rate * atof(words[3]));
    size = fread(request, 1, LONGEST, stdin);
    all = calloc(connections, sizeof *all), taken = calloc(requests, sizeof *taken);
    int poll = epoll_create1(0), one = 1;
    for (struct connection *each = all; each < all + connections; each++) {
        each->socket = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(each->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (connect(each->socket, (struct sockaddr *)&address, sizeof address)) err(1, "port %s", words[1]);
        epoll_ctl(poll, EPOLL_CTL_ADD, each->socket, &(struct epoll_event){EPOLLIN, {.ptr = each}});
    }
    begin = now();
    for (long due = 0; done < requests;) {
        double passed = now() - begin;
        for (; due < requests && due <= passed * rate; due++) {
            all[due % connections].due++;
            send_next(&all[due % connections]);
        }
        double wait = due < requests ? due / rate - (now() - begin) : requests / rate + PATIENCE - passed;
        if (due == requests && wait < 0) errx(1, "%ld of %ld requests were not answered", requests - done, requests);
        if (wait < TICK) wait = TICK;
        struct timespec timeout = {wait, fmod(wait, 1) * 1e9};
        struct epoll_event events[EVENTS];
        int ready = epoll_pwait2(poll, events, EVENTS, &timeout, NULL);
        for (int n = 0; n < ready; n++) receive(events[n].data.ptr);
    }
    qsort(taken, requests, sizeof *taken, ascending);
    printf("%.9f %.9f\n", taken[requests / 2], taken[(long)(requests * 0.99)]);
}
