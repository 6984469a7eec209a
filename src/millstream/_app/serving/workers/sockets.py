"""The sockets that workers accept from: opened once, by the parent, and kept until everything ends.

On Linux the kernel spreads connections over sockets that share a port, so each worker has its own. What waits in a
socket's queue survives the death of its worker, since the parent has the socket too, and the next one goes on with it.
Elsewhere a port has one socket for all (macOS lets them share a port, and then gives every connection to one of them).
"""

import logging
import socket
import sys

from millstream._app.serving.listening import listen

logger = logging.getLogger("millstream")

SPREADS = sys.platform == "linux"
"""The kernel spreads connections over several sockets of one port."""


def open_sockets(host: str, port: int, workers: int) -> list[socket.socket]:
    """Sockets for so many workers: one for each, or fewer, which they share.

    Raises:
        CommandError: the address or port cannot be used.
    """
    if workers == 1 or not SPREADS:
        if workers > 1:
            logger.info("All workers accept from one socket here, so some may get more connections than others")
        return [listen(host, port)]
    # One that doesn't share sees what listens there already; one that does keeps the port that the kernel has picked.
    with listen(host, port, shared=not port) as first:
        if port:
            first.close()
        else:
            port = first.getsockname()[1]
        return [listen(host, port, shared=True) for _ in range(workers)]
