"""Load with the head and the body of each request in two segments, as httpx sends them. wrk sends them in one.

    python -m benches.segments PORT SECONDS CONNECTIONS SIZE < REQUEST

It prints the number of replies, each of which has SIZE bytes.
"""

import socket
import sys
import time
from contextlib import ExitStack


def main(port: int, seconds: float, connections: int, size: int) -> None:
    """Send the request on each connection in turn until the time is over."""
    head, end, body = sys.stdin.buffer.read().partition(b"\r\n\r\n")
    answers = 0
    with ExitStack() as stack:
        peers = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(connections)]
        for peer in peers:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stop = time.monotonic() + seconds
        while time.monotonic() < stop:
            for peer in peers:
                peer.sendall(head + end)
            for peer in peers:
                peer.sendall(body)
            for peer in peers:
                reply = peer.recv(size)
                while len(reply) < size:
                    reply += peer.recv(size - len(reply)) or sys.exit("the server closed a connection")
                if not reply.startswith(b"HTTP/1.1 2"):
                    sys.exit(f"a reply begins with {reply[:30]!r}")
                answers += 1
    print(answers)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
