"""The states of a connection: one table for reading, one for replying.

Each event maps the state before to the state after. The connection changes `reading` and `replying` only by a lookup in
one of these mappings, so an illegal transition raises KeyError.
"""

NEW, IDLE, HEAD, BODY, EXPECTED, FAST_BODY, DONE = range(7)
"""The states of reading. No byte of a request has arrived before `HEAD`.

- NEW: no request has arrived yet.
- IDLE: the next request has not begun.
- HEAD: the parser is in the head of a request.
- BODY: the parser is in the body of a request.
- EXPECTED: the client waits for ``100 Continue``, and an earlier reply is pending.
- FAST_BODY: the rest of a body whose head was read without the parser.
- DONE: nothing more is read.
"""
READING = ("new", "idle", "head", "body", "expected", "fast body", "done")

SILENT, ANSWERING, CLOSED = range(3)
"""The states of replying.

- SILENT: no call is running.
- ANSWERING: a call is running, or its stream is open.
- CLOSED: the last reply is written, or the connection is lost.
"""
REPLYING = ("silent", "answering", "closed")

# Reading
BEGINS = {NEW: HEAD, IDLE: HEAD, DONE: DONE}
"""The parser reads the first byte of a request."""
TAKEN = {HEAD: BODY}
"""A head is complete and within the limits."""
ASKS = {BODY: EXPECTED}
"""The head contained ``Expect: 100-continue``."""
PERMITTED = {EXPECTED: BODY}
"""The connection returned the event that permits the body."""
READ_WHOLE = {NEW: IDLE, IDLE: IDLE}
"""The fast head reader read a head and its complete body."""
READ_IN_PART = {NEW: FAST_BODY, IDLE: FAST_BODY}
"""The fast head reader read a head, and the body ends later."""
IGNORES_UPGRADE = {HEAD: IDLE}
"""The head requests an upgrade that the server ignores. It's parsed again without it."""
ENDS = {BODY: IDLE, EXPECTED: IDLE, FAST_BODY: IDLE}
"""A request is complete."""
STOPS = dict.fromkeys(range(DONE + 1), DONE)
"""A refusal, an upgrade, a full pipeline, or a lost connection."""

# Replying
BEGINS_REPLY = {SILENT: ANSWERING}
"""A request is passed to its handler."""
COMPLETES = {ANSWERING: SILENT, CLOSED: CLOSED}
"""The reply is written, or the connection was lost."""
CLOSES = dict.fromkeys(range(CLOSED + 1), CLOSED)
"""The refusal or the upgrade is passed to the protocol, or the connection is lost."""

READING_MOVES = {
    "begins": BEGINS,
    "is taken": TAKEN,
    "asks": ASKS,
    "is permitted": PERMITTED,
    "is read whole": READ_WHOLE,
    "is read in part": READ_IN_PART,
    "ignores an upgrade": IGNORES_UPGRADE,
    "ends": ENDS,
    "stops": STOPS,
}
REPLYING_MOVES = {"begins": BEGINS_REPLY, "completes": COMPLETES, "closes": CLOSES}
