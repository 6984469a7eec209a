"""Monitoring of the commands that Redis receives."""

import socket

from patience import WAIT
from redis_parts import RedisServer


class Monitor:
    """All commands that Redis receives, without those that its scripts call."""

    def __init__(self, server: RedisServer) -> None:
        self._peer = socket.create_connection(("127.0.0.1", server.port), timeout=WAIT)
        self._file = self._peer.makefile("r", encoding="utf-8", errors="replace")
        self._peer.sendall(b"MONITOR\r\n")
        assert self._file.readline() == "+OK\n"

    def until(self, last: str) -> list[str]:
        """Return all commands up to one that contains this text."""
        found: list[str] = []
        while not found or last not in found[-1]:
            line = self._file.readline()
            assert line
            if " lua] " not in line:
                found.append(line)
        return found

    def close(self) -> None:
        self._file.close()
        self._peer.close()
