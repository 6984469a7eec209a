"""Starts ``millstream`` commands in a few milliseconds: this process has the imports, and forks for each command.

Suites in other languages start a server for each of their tests, thousands of times. `open_starter` listens on a Unix
socket. A test connects and sends a line with a JSON object (`Order`), for example ``{"arguments": ["run", URL]}``.

- If ``stdio`` is true, the rest of the connection is the command's standard input and output. The command ends as it
  does for other clients: when the client closes the connection, or its sending half.
- Otherwise, the command serves HTTP on a port that's free. The reply is a line with a JSON object, ``{"port": 4711}``.
  The command is stopped when the client closes the connection.

Each command writes its log to a file of its own.
"""

import contextlib
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import msgspec
from msgspec import Struct

IMPORTS = (
    "millstream._app.gateway_server",
    "millstream._app.server_process.launch",
    "millstream._cli.gateway",
    "millstream._cli.run",
    "millstream._cli.serve",
    "millstream._transports.connection",
    "millstream._transports.stdio",
    "millstream._gateway.part",
)
"""Modules that each command needs."""
START_SECONDS = 60
STOP_SECONDS = 10
"""Seconds until a command that should stop is killed."""
CHUNK_BYTES = 65_536


class Order(Struct):
    """A command to start."""

    arguments: list[str]
    """Arguments of ``millstream``. The first is its subcommand."""
    stdio: bool = False
    """Whether to serve standard input and output."""
    files: dict[str, str] = {}
    """Path -> text of files to write first, for example of a gateway."""


@contextlib.contextmanager
def open_starter(logs: Path) -> Iterator[Path]:
    """Run a starter. Yield the path of its socket, in a folder that's removed afterwards.

    Args:
        logs: Folder for the logs of the commands. Those of earlier runs are removed.

    Raises:
        RuntimeError: The starter doesn't start.
    """
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "starter"
        with subprocess.Popen([sys.executable, "-m", "benches.middle.starter", str(path), str(logs)]) as running:
            try:
                for _ in range(START_SECONDS * 20):
                    if path.exists() or running.poll() is not None:
                        break
                    time.sleep(0.05)
                if not path.exists():
                    raise RuntimeError("The starter doesn't start.")
                yield path
            finally:
                running.terminate()


def serve(path: Path, logs: Path) -> NoReturn:
    """Listen, and run each order in a process of its own."""
    for name in IMPORTS:
        importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as listener:
        preparing = path.with_suffix(".new")
        preparing.unlink(missing_ok=True)
        listener.bind(str(preparing))
        listener.listen(256)
        preparing.rename(path)  # now that clients can connect
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel then forgets the processes that have ended
        number = 0
        while True:
            connection, _ = listener.accept()
            number += 1
            if not os.fork():
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                with contextlib.suppress(OSError), connection:
                    carry_out(connection, logs / f"{number}.log")
                os._exit(0)
            connection.close()


def carry_out(connection: socket.socket, log: Path) -> None:
    """Run one order until its command ends."""
    line = bytearray()
    while not line.endswith(b"\n"):
        if not (byte := connection.recv(1)):  # what follows is for the command
            return
        line += byte
    order = msgspec.json.decode(line, type=Order)
    for name, text in order.files.items():
        Path(name).write_text(text, "utf-8")
    if order.stdio:
        _serve_stdio(order, connection, log)
    else:
        _serve_http(order, connection, log)


def _serve_stdio(order: Order, connection: socket.socket, log: Path) -> None:
    stdin, to_command = os.pipe()
    from_command, stdout = os.pipe()
    child = os.fork()
    if not child:
        os.close(to_command)
        os.close(from_command)
        connection.close()
        _run(order.arguments, log, stdin, stdout)
    os.close(stdin)
    os.close(stdout)
    threading.Thread(target=_copy_from, args=(connection, to_command), daemon=True).start()
    with contextlib.suppress(OSError):
        while chunk := os.read(from_command, CHUNK_BYTES):
            connection.sendall(chunk)
    os.close(from_command)  # if the client no longer reads, neither does the command's next write
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    os.waitpid(child, 0)


def _copy_from(connection: socket.socket, to_command: int) -> None:
    with contextlib.suppress(OSError):
        while chunk := connection.recv(CHUNK_BYTES):
            while chunk:
                chunk = chunk[os.write(to_command, chunk) :]
    os.close(to_command)


def _serve_http(order: Order, connection: socket.socket, log: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        port = listener.getsockname()[1]
        listener.set_inheritable(True)
        child = os.fork()
        if not child:
            connection.close()
            null = os.open(os.devnull, os.O_RDWR)
            command, *options = order.arguments
            _run([command, "--fd", str(listener.fileno()), *options], log, null, null)
    try:
        connection.sendall(msgspec.json.encode({"port": port}) + b"\n")
        while connection.recv(CHUNK_BYTES):
            pass
    finally:
        os.kill(child, signal.SIGTERM)
        killing = threading.Timer(STOP_SECONDS, os.kill, (child, signal.SIGKILL))
        killing.start()
        os.waitpid(child, 0)
        killing.cancel()


def _run(arguments: list[str], log: Path, stdin: int, stdout: int) -> NoReturn:
    """Replace the standard streams, and run a command in this process."""
    os.setsid()
    stderr = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number, descriptor in enumerate((stdin, stdout, stderr)):
        os.dup2(descriptor, number)
    for descriptor in {stdin, stdout, stderr} - {0, 1, 2}:
        os.close(descriptor)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  this process has them until it ends
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = ["millstream", *arguments]
    status = 0
    try:
        importlib.import_module("millstream._cli").main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # nothing may return to the starter's loop
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]))
