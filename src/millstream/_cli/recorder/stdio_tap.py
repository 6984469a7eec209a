"""Forwarding of standard input and output between a client and a server process, with a recording of every line."""

import asyncio
import os
import shutil
import sys
from contextlib import suppress

from millstream._cli.recorder.standard_input import MAX_LINE, lines, write_stdout
from millstream._cli.recorder.transcript import Writer
from millstream._cli.tables import safe
from millstream._protocol.lines import LineSplitter
from millstream.client._errors import TargetError
from millstream.client._transports.stdio import Command

_GRACE = 2.0


async def tap(command: Command, writer: Writer) -> int:
    """Run until either side ends, and return the server's exit status.

    Raises:
        TargetError: the server can't be started.
    """
    program = shutil.which(command.argv[0])
    if program is None:
        raise TargetError(f"There is no program {command.argv[0]!r}. Check its name, and that it is on the PATH.")
    try:
        # Pass on all variables, because the client chose them for the server.
        process = await asyncio.create_subprocess_exec(
            program, *command.argv[1:], cwd=command.cwd, env={**os.environ, **command.env},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as exc:
        raise TargetError(f"{command.argv[0]} can't be started: {exc.strerror}.") from exc
    inward = asyncio.create_task(_from_client(process, writer))
    outward = [asyncio.create_task(_from_server(process, writer)), asyncio.create_task(_from_stderr(process, writer))]
    try:
        await asyncio.wait((inward, *outward[:1]), return_when=asyncio.FIRST_COMPLETED)
        for end in (process.terminate, process.kill):
            with suppress(TimeoutError):
                async with asyncio.timeout(_GRACE):
                    await process.wait()
            if process.returncode is None:
                end()
        await asyncio.gather(*outward)
    finally:
        inward.cancel()
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0


async def _from_client(process: asyncio.subprocess.Process, writer: Writer) -> None:
    stdin = process.stdin
    assert stdin is not None  # noqa: S101  it's a pipe
    with suppress(ConnectionError):
        async for line in lines():
            writer.line("client", line)
            stdin.write(line + b"\n")
            await stdin.drain()
    stdin.close()


async def _from_server(process: asyncio.subprocess.Process, writer: Writer) -> None:
    stdout = process.stdout
    assert stdout is not None  # noqa: S101  it's a pipe
    splitter = LineSplitter(MAX_LINE)
    while data := await stdout.read(65536):
        for line in splitter.feed(data):
            if line is None:
                writer.text("server", "[a line of more than 64 MiB]")
            else:
                writer.line("server", line)
        await write_stdout(data)


async def _from_stderr(process: asyncio.subprocess.Process, writer: Writer) -> None:
    stderr = process.stderr
    assert stderr is not None  # noqa: S101  it's a pipe
    while data := await stderr.read(65536):
        text = data.decode("utf-8", "replace")
        writer.text("server", text)
        sys.stderr.write(safe(text))
        sys.stderr.flush()
