"""The sockets that workers accept from: opened once by the parent, and kept until shutdown.

On Linux, the kernel spreads connections over sockets that share a port, so each worker has its own. Connections in a
socket's queue survive the death of its worker, because the parent holds the socket, too, and the replacement continues
with it. Elsewhere, all workers share one socket (macOS lets them share a port, but assigns all connections to one).
"""

import logging
import socket
import sys

from millstream._app.server_process.listen_sockets import listen

logger = logging.getLogger("millstream")

SPREADS = sys.platform == "linux"
"""Whether the kernel spreads connections over several sockets of one port."""


def open_sockets(host: str, port: int, workers: int) -> list[socket.socket]:
    """Return sockets for the workers: one for each, or fewer, which they share.

    Raises:
        CommandError: the address or port can't be used.
    """
    if workers == 1 or not SPREADS:
        if workers > 1:
            logger.info(
                "All workers accept from one socket on this platform, so some may get more connections than others."
            )
        return [listen(host, port)]
    # An unshared bind detects existing listeners; a shared one keeps the port that the kernel has picked.
    with listen(host, port, shared=not port) as first:
        if port:
            first.close()
        else:
            port = first.getsockname()[1]
        return [listen(host, port, shared=True) for _ in range(workers)]
