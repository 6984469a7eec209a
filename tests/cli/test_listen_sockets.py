import errno
import socket
from typing import Any

import pytest

from command_line import CommandError
from millstream._app.server_process import listen_sockets as listening


@pytest.mark.parametrize(
    ("number", "what"), [(errno.EADDRINUSE, "Port 8000 on 127.0.0.1 is in use."), (errno.EACCES, "Port 8000 isn't")]
)
def test_listen_error_shows_the_errno_text(number: int, what: str, monkeypatch: pytest.MonkeyPatch) -> None:

    class Refused(socket.socket):
        def bind(self, address: Any) -> None:
            raise OSError(number, "ein Text in einer anderen Sprache")

    monkeypatch.setattr(listening.socket, "socket", Refused)
    with pytest.raises(CommandError, match=what):
        listening.listen("127.0.0.1", 8000)
