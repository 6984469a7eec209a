/* Load for broadcasts: N subscribers, one publisher and some callers over loopback, in one thread around one epoll.
   Without subscribers, only the calls, at their fixed rate.

   Every event carries a number. Each subscriber must get each number once and in order; what it gets otherwise is
   counted. The time of an event runs from the moment it is due (with --rate) or sent until the last subscriber has it.
   The result is one line of JSON on standard output; the exit code is 1 when an event or an answer was not right. */

#include "peers.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

/* Open everything, then publish event 0 until every subscriber has heard it. */
static void open_all(void) {
    double begun = now(), told = 0;
    unsigned int heard = 0;
    while (opened < count || opening || total.heard < (unsigned)options.subscribers) {
        connect_next();
        if (opened == count && !opening && peers[publishing].state == IDLE && now() - told > 1) {
            if (total.heard == heard || !told) publish(0, 0);
            heard = total.heard, told = now();
        }
        turn(50);
        if (total.failed || total.lost || now() - begun > 60) {
            fprintf(stderr, "subscribers: %d of %d opened, %u hear, %lu lost, %lu refused\n", opened - opening, count,
                    total.heard, total.lost, total.failed);
            exit(2);
        }
    }
    while (peers[publishing].state != IDLE) turn(50);
}

/* Begin the calls that are due on callers that are free; a call that waits for one is late, and counted so. They take
   turns: a server may close a connection that never asks for anything. */
static double begin_calls(double begun, double at, double until) {
    static int turns;
    double due = begun + total.calls / options.calls;
    for (int tried = 0; tried < options.callers && due <= at && due < until && total.calls < MOST - 1; tried++) {
        struct peer *caller = &peers[count - options.callers + turns++ % options.callers];
        if (caller->state != IDLE) continue;
        call(caller, due);
        due = begun + total.calls / options.calls;
    }
    return due > at ? due : at + 1;
}

static unsigned long faults(void) {
    return total.duplicated + total.missing + total.wrong + total.lost + total.failed;
}

/* Publish for some seconds or so many events, never more than the window ahead of the slowest; with a rate, by the
   clock. Returns the seconds until everybody had everything, or -1 when something was not right or nothing moved for too long. */
static double run(double seconds, unsigned int events, int window, double rate) {
    unsigned int first = total.sent;
    unsigned long seen = 0;
    double begun = now(), until = seconds > 0 ? begun + seconds : 1e18, moved = begun;
    for (;;) {
        double at = now(), due = rate > 0 ? begun + (total.sent - first) / rate : at, wake = at + 0.1;
        int over = at >= until || due >= until || total.sent - first >= events || total.sent + 1 >= MOST;
        int begun_all = seconds <= 0 || total.calls >= MOST - 1 || begun + total.calls / options.calls >= until;
        if (over && total.complete >= total.sent
            && (!options.calls || (begun_all && total.answered >= total.calls && (at >= until || seconds <= 0))))
            return at - begun;
        if (!over && due <= at && peers[publishing].state == IDLE
            && (rate > 0 || total.sent - total.complete < (unsigned)window))
            publish(total.sent + 1, rate > 0 ? due : now());
        if (rate > 0 && due > at && due < wake && !over) wake = due;
        if (options.calls > 0) {
            double next = begin_calls(begun, at, until);
            wake = next < wake ? next : wake;
        }
        if (rate > 0 || options.calls > 0) alarm_at(wake);
        turn(100);
        if (seen != total.deliveries + total.answered) seen = total.deliveries + total.answered, moved = now();
        if (faults() || now() - moved > 20) return -1;
    }
}

static int by_value(const void *one, const void *other) {
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

static void times(const char *name, double *values, unsigned int size) {
    static const struct { const char *name; double share; } marks[] = {{"p50", 0.5}, {"p99", 0.99}, {"max", 1}};
    qsort(values, size, sizeof *values, by_value);
    for (int each = 0; each < 3; each++) {
        unsigned int place = marks[each].share * (size - 1) + 0.5;
        printf(", \"%s%s_ms\": %.3f", name, marks[each].name, size ? values[place] * 1e3 : 0.0);
    }
}

static double cpu(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

/* With --hold whoever started us measures the server now, and sends a line to go on. */
static void milestone(const char *name) {
    if (!options.hold) return;
    printf("%s\n", name);
    fflush(stdout);
    while (getchar() != '\n' && !feof(stdin)) continue;
}


static void report(double spent, double lockstep, unsigned int first, double used, double connected) {
    unsigned int slow = 0;
    for (int each = options.subscribers; each < publishing; each++) slow += peers[each].was_slow;
    printf("{\"subscribers\": %d, \"events\": %u, \"deliveries\": %lu, \"duplicated\": %lu, \"missing\": %lu, "
           "\"wrong\": %lu, \"lost\": %lu, \"failed\": %lu, \"slow\": %u, \"connect_s\": %.3f, \"seconds\": %.3f, "
           "\"rate\": %.0f, \"load_cpu_us\": %.3f",
           options.subscribers, total.complete, total.deliveries, total.duplicated, total.missing, total.wrong,
           total.lost, total.failed, slow, connected, spent,
           spent > 0 ? (double)options.subscribers * first / spent : 0.0,
           total.deliveries + total.answered ? used / (total.deliveries + total.answered) * 1e6 : 0.0);
    /* Times are those of lockstep where there was one: an event alone, not one behind the rest of its window. */
    times("", lockstep ? taken + first + 1 : taken + 1, lockstep ? total.complete - first : total.complete);
    if (options.calls > 0) printf(", \"calls\": %u", total.answered), times("call_", call_times, total.answered);
    printf("}\n");
}

enum { PORT = 256, SUBSCRIBERS, STALLED_ONES, EVENTS, SECONDS, LOCKSTEP, WINDOW, RATE, SIZE, CALLS, CALLERS, REQUEST, WS, TOOL, RAW, HOLD };

static void parse(int argc, char **argv) {
    static const struct option known[] = {
        {"port", 1, 0, PORT},         {"subscribers", 1, 0, SUBSCRIBERS}, {"stalled", 1, 0, STALLED_ONES},
        {"events", 1, 0, EVENTS},     {"seconds", 1, 0, SECONDS},         {"lockstep", 1, 0, LOCKSTEP},
        {"window", 1, 0, WINDOW},     {"rate", 1, 0, RATE},               {"size", 1, 0, SIZE},
        {"calls", 1, 0, CALLS},       {"ws", 0, 0, WS},                   {"tool", 0, 0, TOOL},
        {"raw", 0, 0, RAW},           {"hold", 0, 0, HOLD},             {"callers", 1, 0, CALLERS},
        {"request", 1, 0, REQUEST},   {0, 0, 0, 0}};
    for (int found; (found = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        double value = optarg ? atof(optarg) : 1;
        switch (found) {
            case PORT: options.port = value; break;
            case SUBSCRIBERS: options.subscribers = value; break;
            case STALLED_ONES: options.stalled = value; break;
            case EVENTS: options.events = value; break;
            case SECONDS: options.seconds = value; break;
            case LOCKSTEP: options.lockstep = value; break;
            case WINDOW: options.window = value; break;
            case RATE: options.rate = value; break;
            case SIZE: options.size = value; break;
            case CALLS: options.calls = value; break;
            case CALLERS: options.callers = value; break;
            case REQUEST: options.request = optarg; break;
            case WS: options.websocket = 1; break;
            case TOOL: options.tool = 1; break;
            case RAW: options.raw = 1; break;
            case HOLD: options.hold = 1; break;
            default: exit(2);
        }
    }
    if (!options.port || options.subscribers < 0 || (!options.subscribers && (options.calls <= 0 || options.seconds <= 0))
        || options.callers < 1 || options.size < 16 || options.size >= MOST_BYTES
        || (!options.events && options.seconds <= 0)) {
        fprintf(stderr, "usage: subscribers --port N (--seconds S | --events M) [--subscribers N] [--stalled K] [--ws]\n"
                        "         [--window W] [--rate PER_SECOND] [--lockstep S] [--size BYTES] [--calls PER_SECOND]\n"
                        "         [--callers N] [--request TEXT] [--tool | --raw] [--hold]\n");
        exit(2);
    }
}

int main(int argc, char **argv) {
    struct rlimit files;
    parse(argc, argv);
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    prepare();
    double begun = now();
    open_all();
    double connected = now() - begun;
    milestone("connected");
    double used = cpu();
    unsigned int events = !options.subscribers ? 0 : options.events ? options.events : MOST;
    double spent = run(options.seconds, events, options.window, options.rate);
    unsigned int first = total.complete;
    if (spent >= 0 && options.lockstep > 0) run(options.lockstep, MOST, 1, 0);
    used = cpu() - used;
    milestone("done");
    if (options.stalled) drain_stalled(3);
    int right = spent >= 0 && total.complete == total.sent && total.answered == total.calls && !faults();
    report(spent, options.lockstep, first, used, connected);
    return right ? 0 : 1;
}
