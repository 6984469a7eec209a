"""Copies standard input to a Unix socket, and the socket to standard output: ``python -I -S pipe.py SOCKET``.

Millstream starts it as an upstream whose server is an object in another process, namely in a test.
"""

import os
import socket
import sys
import threading


def copy_input(connection: socket.socket) -> None:
    """Copy standard input until it ends."""
    while chunk := os.read(0, 65_536):
        connection.sendall(chunk)
    connection.shutdown(socket.SHUT_WR)


def main(path: str) -> None:
    """Copy both ways until the socket is closed."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        threading.Thread(target=copy_input, args=(connection,), daemon=True).start()
        while chunk := connection.recv(65_536):
            while chunk:
                chunk = chunk[os.write(1, chunk) :]


if __name__ == "__main__":
    main(sys.argv[1])
