"""The states of a connection: one table for what it reads, one for what it replies.

Each event maps the state before to the state after. The connection changes `reading` and `replying` only by a lookup in
one of these mappings, so an illegal transition raises KeyError.
"""

NEW, IDLE, HEAD, BODY, EXPECTED, FAST_BODY, DONE = range(7)
"""What a connection reads. Up to `IDLE` no byte of a request has arrived.

- NEW: no request has arrived yet.
- IDLE: the next request has not begun.
- HEAD: the parser is in the head of a request.
- BODY: the parser is in the body of a request.
- EXPECTED: the client waits for ``100 Continue``, and an earlier reply is still owed.
- FAST_BODY: the rest of a body whose head was read without the parser.
- DONE: nothing more is read.
"""
READING = ("new", "idle", "head", "body", "expected", "fast body", "done")

SILENT, ANSWERING, CLOSED = range(3)
"""What a connection replies.

- SILENT: no call runs.
- ANSWERING: a call runs, or its stream is open.
- CLOSED: the last reply is written, or nothing can be written any more.
"""
REPLYING = ("silent", "answering", "closed")

# Reading
BEGINS = {NEW: HEAD, IDLE: HEAD, DONE: DONE}
"""The parser meets the first byte of a request."""
TAKEN = {HEAD: BODY}
"""A head is whole and within the limits."""
ASKS = {BODY: EXPECTED}
"""The head contained ``Expect: 100-continue``."""
PERMITTED = {EXPECTED: BODY}
"""The connection gave the event that permits the body."""
READ_WHOLE = {NEW: IDLE, IDLE: IDLE}
"""The fast head reader got a head with its whole body."""
READ_IN_PART = {NEW: FAST_BODY, IDLE: FAST_BODY}
"""The fast head reader got a head, and the body ends later."""
IGNORES_UPGRADE = {HEAD: IDLE}
"""The head asks for an upgrade that the server ignores. It's parsed again without it."""
ENDS = {BODY: IDLE, EXPECTED: IDLE, FAST_BODY: IDLE}
"""A request is whole."""
STOPS = dict.fromkeys(range(DONE + 1), DONE)
"""A refusal, an upgrade, a full pipeline, or a lost connection."""

# Replying
BEGINS_REPLY = {SILENT: ANSWERING}
"""A request is given to its handler."""
COMPLETES = {ANSWERING: SILENT, CLOSED: CLOSED}
"""The reply is written, or the connection was lost."""
CLOSES = dict.fromkeys(range(CLOSED + 1), CLOSED)
"""The refusal or the upgrade is given to the protocol, or the connection is lost."""

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
