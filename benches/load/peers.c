/* Connections: how they open, what is sent on them, and how what comes back is taken apart and counted. */

#include "peers.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

struct options options = {.subscribers = 100, .callers = 8, .window = 4, .size = 128};
struct total total;
struct peer *peers;
int count, opened, opening, publishing;
double sent_at[MOST], taken[MOST], call_times[MOST];
static int left[MOST];
static int poller, ticker;
static char payload[MOST_BYTES], buffer[1 << 18];

double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

void die(const char *what) {
    fprintf(stderr, "subscribers: %s: %s\n", what, strerror(errno));
    exit(2);
}

static void watch(struct peer *peer, int operation, unsigned int events) {
    struct epoll_event event = {.events = events, .data.ptr = peer};
    if (epoll_ctl(poller, operation, peer->fd, &event)) die("epoll_ctl");
}

static void send_all(struct peer *peer, const char *data, size_t size) {
    while (size) {
        ssize_t done = send(peer->fd, data, size, MSG_NOSIGNAL);
        if (done < 0 && errno == EAGAIN) {
            struct pollfd one = {.fd = peer->fd, .events = POLLOUT};
            poll(&one, 1, 1000);
        } else if (done < 0) {
            return; /* the end is seen by reading */
        } else {
            data += done, size -= done;
        }
    }
}

void connect_next(void) {
    while (opened < count && opening < OPENING) {
        struct peer *peer = &peers[opened++];
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(options.port)};
        int on = 1, small = 4096;
        to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        peer->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (peer->fd < 0) die("socket");
        setsockopt(peer->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (peer->kind == STALLED) setsockopt(peer->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
        if (connect(peer->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) die("connect");
        opening++;
        watch(peer, EPOLL_CTL_ADD, EPOLLOUT);
    }
}

static void greet(struct peer *peer) {
    static const char *sse = "GET /events HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: text/event-stream\r\n\r\n";
    static const char *websocket =
        "GET /ws HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    watch(peer, EPOLL_CTL_MOD, EPOLLIN);
    if (peer->kind >= PUBLISHER) {
        peer->state = IDLE, opening--;
        return;
    }
    peer->state = HEAD;
    send_all(peer, buffer, sprintf(buffer, options.websocket ? websocket : sse, options.port));
}

/* A client's frame; its mask of zeros leaves the payload as it is. */
static void send_frame(struct peer *peer, int opcode, const char *data, size_t size) {
    char frame[6 + 125] = {(char)(0x80 | opcode), (char)(0x80 | size)};
    memcpy(frame + 6, data, size);
    send_all(peer, frame, 6 + size);
}

static void post(struct peer *peer, const char *path, const char *extra, const char *body) {
    static char request[MOST_BYTES + 2048];
    peer->state = HEAD, peer->length = peer->need = 0;
    send_all(peer, request,
             snprintf(request, sizeof request,
                      "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                      "Accept: application/json, text/event-stream\r\n%sContent-Length: %zu\r\n\r\n%s",
                      path, options.port, extra, strlen(body), body));
}

static void call_tool(struct peer *peer, const char *name, unsigned int id, const char *arguments) {
    static char body[MOST_BYTES + 1024], head[256];
    snprintf(head, sizeof head, "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\nMcp-Name: %s\r\n", name);
    snprintf(body, sizeof body,
             "{\"jsonrpc\":\"2.0\",\"id\":%u,\"method\":\"tools/call\",\"params\":{\"name\":\"%s\",\"arguments\":%s,"
             "\"_meta\":{\"io.modelcontextprotocol/protocolVersion\":\"2026-07-28\","
             "\"io.modelcontextprotocol/clientInfo\":{\"name\":\"bench\",\"version\":\"1\"},"
             "\"io.modelcontextprotocol/clientCapabilities\":{}}}}",
             id, name, arguments);
    post(peer, "/mcp", head, body);
}

/* With --request, its text with the call's own number wherever it has the number RECORDED. */
static void call_recorded(struct peer *peer) {
    char number[8];
    peer->state = HEAD, peer->length = peer->need = 0, peer->call += atoi(RECORDED) - 1;
    snprintf(number, sizeof number, "%07u", peer->call);
    strcpy(buffer, options.request);
    for (char *at = buffer; (at = strstr(at, RECORDED)); at += 7) memcpy(at, number, 7);
    send_all(peer, buffer, strlen(buffer));
}

void call(struct peer *peer, double due) {
    char arguments[64];
    peer->due = due, peer->call = ++total.calls;
    if (options.request) {
        call_recorded(peer);
        return;
    }
    snprintf(arguments, sizeof arguments, "{\"a\":%u,\"b\":1}", peer->call);
    call_tool(peer, "add_numbers", peer->call, arguments);
}

/* Event 0 only finds out who listens; it may come more than once. */
void publish(unsigned int number, double due) {
    static char body[MOST_BYTES + 64];
    int size = snprintf(payload, sizeof payload, "#%010u ", number);
    memset(payload + size, 'x', options.size - size);
    payload[options.size] = 0;
    if (options.raw) memcpy(body, payload, options.size + 1);
    else snprintf(body, sizeof body, "{\"%s\":\"%s\"}", options.tool ? "message" : "data", payload);
    if (number) sent_at[number] = due, left[number] = options.subscribers, total.sent = number;
    if (options.tool) call_tool(&peers[publishing], "send_sse_message", number, body);
    else post(&peers[publishing], "/publish", "", body);
}

static void got(struct peer *peer, unsigned int number) {
    if (!number) {
        if (!peer->next && peer->kind == SUBSCRIBER) total.heard++;
        if (peer->next > 1) total.duplicated++;
        else peer->next = 1;
        return;
    }
    if (peer->kind == STALLED && !peer->next) peer->next = number;
    if (number < peer->next || number > total.sent) {
        total.duplicated++;
        return;
    }
    total.missing += number - peer->next;
    peer->next = number + 1;
    if (peer->kind != SUBSCRIBER) return;
    total.deliveries++;
    if (--left[number] == 0) taken[number] = now() - sent_at[number], total.complete++;
}

static void answered(struct peer *peer) {
    peer->state = IDLE;
    if (peer->kind == CALLER) {
        const char *result = strstr(peer->text, "\"structuredContent\":");
        result = result ? strpbrk(result, "0123456789") : NULL;
        if (!result || strtoul(result, NULL, 10) != peer->call + 1) total.wrong++;
        call_times[total.answered++] = now() - peer->due;
    }
}

/* One line of a head or of an event stream; only its first bytes are kept. The lines of chunks pass unseen. */
static void line(struct peer *peer) {
    char *text = peer->text;
    unsigned int length = peer->length;
    text[length < LINE ? length : LINE] = 0;
    peer->length = 0;
    if (peer->state == HEAD) {
        if (!strncmp(text, "HTTP/1.1 ", 9)) {
            int status = atoi(text + 9);
            int right = peer->kind < PUBLISHER && options.websocket ? status == 101 : status / 100 == 2;
            if (!right) total.failed++;
        } else if (!strncasecmp(text, "content-length:", 15)) {
            peer->need = atoi(text + 15);
        } else if (length == 1 && peer->kind >= PUBLISHER) {
            peer->state = BODY;
        } else if (length == 1) {
            opening--;
            peer->need = 0;
            peer->state = options.websocket ? FRAMES : LINES;
            if (options.websocket) send_frame(peer, 1, "{\"type\":\"subscribe\"}", 20);
        }
    } else if (!strncmp(text, "data: #", 7)) {
        if (length - 6 - options.size > 1) total.wrong++; /* one more is a carriage return */
        got(peer, strtoul(text + 7, NULL, 10));
    } else if (!strncmp(text, "event: cut", 10)) {
        peer->named_cut = 1;
    } else if (peer->named_cut && !strncmp(text, "data: ", 6) && strstr(text, "slow")) {
        peer->was_slow = 1;
    }
}

static void keep(struct peer *peer, const char *data, size_t size, size_t room) {
    size_t have = peer->length < room ? peer->length : room;
    memcpy(peer->text + have, data, size < room - have ? size : room - have);
    peer->length += size;
}

/* Take what belongs to the current frame; the number of its bytes. */
static size_t frame(struct peer *peer, const char *data, size_t size) {
    unsigned char *head = (unsigned char *)peer->text;
    unsigned int wide = peer->length < 2 ? 0 : head[1] == 126 ? 2 : head[1] == 127 ? 8 : 0, start = 2 + wide;
    if (peer->length < start) size = 1; /* the head, byte by byte */
    else if (size > peer->need - peer->length) size = peer->need - peer->length;
    keep(peer, data, size, KEPT);
    if (peer->length == 2) wide = head[1] == 126 ? 2 : head[1] == 127 ? 8 : 0, start = 2 + wide;
    if (peer->length == start) {
        peer->need = wide ? 0 : head[1];
        for (unsigned int each = 2; each < start; each++) peer->need = peer->need << 8 | head[each];
        peer->need += start;
    }
    if (peer->length < start || peer->length < peer->need) return size;
    peer->text[peer->length < KEPT ? peer->length : KEPT] = 0;
    char *mark = (head[0] & 15) == 1 ? strchr(peer->text + start, '#') : NULL;
    if (mark && peer->need - start < options.size) total.wrong++;
    if (mark) got(peer, strtoul(mark + 1, NULL, 10));
    if ((head[0] & 15) == 9) send_frame(peer, 10, peer->text + start, peer->need - start);
    peer->length = peer->need = 0;
    return size;
}

static void end(struct peer *peer) {
    if (peer->state == ENDED) return;
    peer->state = ENDED;
    close(peer->fd);
    if (peer->kind != STALLED) total.lost++;
}

static void take(struct peer *peer) {
    ssize_t size = recv(peer->fd, buffer, sizeof buffer, 0);
    if (size < 0 && errno == EAGAIN) return;
    if (size <= 0) {
        end(peer);
        return;
    }
    for (char *data = buffer, *stop = buffer + size; data < stop;) {
        if (peer->state == FRAMES) {
            data += frame(peer, data, stop - data);
        } else if (peer->state == BODY) {
            keep(peer, data, stop - data, KEPT);
            data = stop;
        } else {
            char *feed = memchr(data, '\n', stop - data);
            keep(peer, data, (feed ? feed : stop) - data, LINE);
            data = feed ? feed + 1 : stop;
            if (feed) line(peer);
        }
        if (peer->state == BODY && peer->length >= peer->need) {
            peer->text[peer->length < KEPT ? peer->length : KEPT] = 0;
            answered(peer);
        }
    }
}

void turn(int wait_ms) {
    struct epoll_event events[512];
    int found = epoll_wait(poller, events, 512, wait_ms);
    for (int each = 0; each < found; each++) {
        struct peer *peer = events[each].data.ptr;
        unsigned long long ticks;
        if (!peer) {
            if (read(ticker, &ticks, sizeof ticks) < 0 && errno != EAGAIN) die("timer");
        } else if (peer->state == CONNECTING) {
            int error = 0;
            socklen_t size = sizeof error;
            getsockopt(peer->fd, SOL_SOCKET, SO_ERROR, &error, &size);
            if (error) errno = error, die("connect");
            greet(peer);
        } else if (peer->state != ENDED) {
            take(peer);
            int listens = peer->state == LINES || peer->state == FRAMES;
            if (peer->kind == STALLED && listens && !peer->drained) watch(peer, EPOLL_CTL_DEL, 0);
        }
    }
}

/* Wake up `turn` at a time. */
void alarm_at(double at) {
    struct itimerspec when = {.it_value = {(time_t)at, (long)((at - (time_t)at) * 1e9)}};
    timerfd_settime(ticker, TFD_TIMER_ABSTIME, &when, NULL);
}

/* Now the stalled ones read, so that their last event can be seen. */
void drain_stalled(double seconds) {
    for (int each = options.subscribers; each < publishing; each++)
        if (peers[each].state != ENDED) peers[each].drained = 1, watch(&peers[each], EPOLL_CTL_ADD, EPOLLIN);
    for (double stop = now() + seconds; now() < stop;) turn(50);
}

void prepare(void) {
    struct epoll_event event = {.events = EPOLLIN};
    poller = epoll_create1(0);
    ticker = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    if (poller < 0 || ticker < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, ticker, &event)) die("epoll");
    int callers = options.calls > 0 ? options.callers : 0;
    count = options.subscribers + options.stalled + !!options.subscribers + callers;
    publishing = options.subscribers + options.stalled;
    peers = calloc(count, sizeof *peers);
    for (int each = 0; each < count; each++)
        peers[each].kind = each < options.subscribers ? SUBSCRIBER
                           : each < publishing        ? STALLED
                           : each < count - callers   ? PUBLISHER
                                                      : CALLER;
}
