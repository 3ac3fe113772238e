/* A client that sends at a fixed rate, whatever the answers do: latency counts from when a request was due.
 *
 * openloop PORT RATE SECONDS CONNECTIONS, the request on standard input: prints in seconds p50 and p99, then p99 of
 * the requests that were not under way while the client itself did not run, and the share of those that were.
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
static const double HELD_UP = 0.001; /* seconds: no step of the client takes a tenth of this */

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
static long connections, done, fair;
static double rate, begin, held_up_until, *taken, *taken_fairly; /* fairly: while the client ran */

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

/* The time; what passed since it was last asked for, beyond what was to be waited, is taken from the client. */
static double next_moment(double waited) {
    static double last;
    double moment = now();
    if (last && moment - last > waited + HELD_UP) held_up_until = moment;
    return last = moment;
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
    double due = begin + number / rate, passed = next_moment(0) - due;
    taken[done++] = passed;
    if (due > held_up_until) taken_fairly[fair++] = passed;
    from->length = 0;
    send_next(from);
}

static int ascending(const void *a, const void *b) {
    double difference = *(const double *)a - *(const double *)b;
    return (difference > 0) - (difference < 0);
}

static double percentile(double *values, long number, double which) {
    if (!number) errx(1, "the client was held up all the time");
    qsort(values, number, sizeof *values, ascending);
    return values[(long)(number * which)];
}

int main(int count, char **words) {
    if (count != 5) errx(2, "usage: openloop PORT RATE SECONDS CONNECTIONS");
    struct sockaddr_in address = {AF_INET, htons(atoi(words[1])), {htonl(INADDR_LOOPBACK)}, {0}};
    rate = atof(words[2]), connections = atol(words[4]);
    long requests = ceil(rate * atof(words[3]));
    size = fread(request, 1, LONGEST, stdin);
    all = calloc(connections, sizeof *all), taken = calloc(requests, sizeof *taken);
    taken_fairly = calloc(requests, sizeof *taken);
    int poll = epoll_create1(0), one = 1;
    for (struct connection *each = all; each < all + connections; each++) {
        each->socket = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(each->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (connect(each->socket, (struct sockaddr *)&address, sizeof address)) err(1, "port %s", words[1]);
        epoll_ctl(poll, EPOLL_CTL_ADD, each->socket, &(struct epoll_event){EPOLLIN, {.ptr = each}});
    }
    begin = now();
    for (long due = 0; done < requests;) {
        double passed = next_moment(0) - begin;
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
        next_moment(wait);
        for (int n = 0; n < ready; n++) receive(events[n].data.ptr);
    }
    printf("%.9f %.9f %.9f %.9f\n", percentile(taken, requests, 0.5), percentile(taken, requests, 0.99),
           percentile(taken_fairly, fair, 0.99), 1 - (double)fair / requests);
}
