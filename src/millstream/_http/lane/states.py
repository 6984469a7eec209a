"""What a connection reads, as a table: its states, and which event moves it from which state to which.

The table is the rule, as in a parser's grammar. The protocol classes change `phase` by a look-up in one of these
mappings and in no other way, so what isn't in the table can't happen: it's a KeyError, which the guard logs and answers
with 500. What is being answered stands beside it: `current` is the call that runs, `waiting` starts those behind it.
The two meet in `REFUSED`, which lasts until every reply that is owed has been written.
"""

NEW, IDLE, HEAD, ASGI_BODY, BODY, EXPECTED, USUAL_BODY, REFUSED, CLOSED = range(9)
"""The states. Up to `IDLE` nothing of a request has come; from `REFUSED` on nothing more is read.

- NEW: no request has come yet.
- IDLE: the next request has not begun.
- HEAD: the parser is in the head of a request.
- ASGI_BODY: the parser gives a body to uvicorn's request cycle.
- BODY: the parser gives a body to a call of the lane.
- EXPECTED: the peer asked whether to send the body, and a call in front of this one still runs.
- USUAL_BODY: the rest of a body whose usual head was read without the parser.
- REFUSED: a refusal is owed, after the replies in front of it.
- CLOSED: the last thing on the connection has been written, or is being answered.
"""

NAMES = ("new", "idle", "head", "ASGI body", "body", "expected", "usual body", "refused", "closed")

_READING = range(REFUSED)

BEGINS = {NEW: HEAD, IDLE: HEAD, REFUSED: REFUSED, CLOSED: CLOSED}
"""The parser meets the first byte of a request."""
GOES_TO_ASGI = {HEAD: ASGI_BODY}
"""A head is whole and fits, and uvicorn's cycle has the request."""
TAKEN = {HEAD: BODY}
"""A head is whole and fits, and the lane has the request."""
ASKS = {BODY: EXPECTED}
"""That head said ``Expect: 100-continue``."""
PERMITTED = {EXPECTED: BODY}
"""``100 Continue`` was written."""
READ_WHOLE = {NEW: IDLE, IDLE: IDLE}
"""A usual head came together with its whole body."""
READ_IN_PART = {NEW: USUAL_BODY, IDLE: USUAL_BODY}
"""A usual head came, and its body ends elsewhere."""
ENDS = {ASGI_BODY: IDLE, BODY: IDLE, EXPECTED: IDLE, USUAL_BODY: IDLE}
"""A request is whole."""
OVERFLOWS = {HEAD: CLOSED}
"""One request too many is in the pipeline: those in front of it are answered, and no more are read."""
IS_REFUSED = dict.fromkeys(_READING, REFUSED)
"""Something can't go on."""
DISMISSED = {REFUSED: CLOSED}
"""The refusal was written."""
LEAVES = dict.fromkeys(range(CLOSED + 1), CLOSED)
"""The connection is lost, or speaks another protocol from now on."""

MOVES = {
    "begins": BEGINS,
    "goes to ASGI": GOES_TO_ASGI,
    "is taken": TAKEN,
    "asks": ASKS,
    "is permitted": PERMITTED,
    "is read whole": READ_WHOLE,
    "is read in part": READ_IN_PART,
    "ends": ENDS,
    "overflows": OVERFLOWS,
    "is refused": IS_REFUSED,
    "is dismissed": DISMISSED,
    "leaves": LEAVES,
}
"""Event -> state before -> state after."""
