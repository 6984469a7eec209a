/* What the two halves of the load program share: `peers.c` is the wire, `subscribers.c` the schedule and the report. */

#ifndef PEERS_H
#define PEERS_H

#define _GNU_SOURCE

enum kind { SUBSCRIBER, STALLED, PUBLISHER, CALLER };
enum state { CONNECTING, HEAD, LINES, FRAMES, BODY, IDLE, ENDED };
enum { MOST = 1 << 20, MOST_BYTES = 1 << 18, LINE = 48, KEPT = 1024, OPENING = 64 };
#define RECORDED "1000001" /* the id in a request of --request, as `http_load.PROBE` */

struct peer {
    int fd;
    unsigned char kind, state, drained, named_cut, was_slow;
    unsigned int next;   /* the number that must come next; 0 until the first event */
    unsigned int length; /* of the current line, frame or body, so far */
    unsigned int need;   /* of the whole frame or body; 0 while it is not known */
    unsigned int call;   /* what a caller asked last, and when that was due */
    double due;
    char text[KEPT + 1]; /* the beginning of the line, frame or body */
};

extern struct options {
    int port, subscribers, stalled, callers, window, websocket, tool, raw, hold;
    unsigned int size, events;
    const char *request; /* what callers send; otherwise, a call of the example's tool */
    double seconds, lockstep, rate, calls;
} options;

extern struct total {
    unsigned long deliveries, duplicated, missing, wrong, lost, failed;
    unsigned int sent, complete, heard; /* events published; received by all; subscribers that know event 0 */
    unsigned int calls, answered;
} total;

extern struct peer *peers;              /* subscribers, stalled ones, the publisher if there are any, callers */
extern int count, opened, opening, publishing;
extern double sent_at[MOST], taken[MOST], call_times[MOST];

double now(void);
void die(const char *what);
void prepare(void);
void connect_next(void);
void publish(unsigned int number, double due);
void call(struct peer *peer, double due);
void alarm_at(double at);
void turn(int wait_ms);
void drain_stalled(double seconds);

#endif
