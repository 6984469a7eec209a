"""Append to a SQLite store from 16 publishers, and print each acknowledged position.

    sqlite_writer.py URL RUN APPENDS-OF-EACH [SIZE] [--file-size BYTES] [--more-room] [--nobody]

The number of failed appends, or the error on opening the store, goes to standard error. `--file-size` limits the size
of files; with `--more-room`, the limit is lifted after the appends, and another append must succeed. `--nobody`
switches to the user `nobody` before opening the store.
"""

import argparse
import asyncio
import json
import logging
import os
import resource
import sys

from millstream._protocol.errors import LocalError
from millstream._stores import open_store
from millstream._stores.sqlite import store as sqlite
from millstream._stores.store import Store

PUBLISHERS = 16
NOBODY = 65534


async def write(store: Store, run: str, each: int, size: int, *, more_room: bool) -> int:
    """Append, and return the number of failures."""
    logging.disable()
    sqlite.PAUSE = 0.0  # type: ignore[misc]  # retry immediately after a disk failure
    await store.open()
    failed = 0

    async def publish(number: int) -> None:
        nonlocal failed
        for n in range(each):
            data = f"{run}:{number}:{n}"
            padded = data.encode().ljust(size, b".")
            try:
                position = await store.log.append("hub:journal", padded, ttl=86_400.0, max_entries=1_000_000)
            except LocalError:
                failed += 1
            else:
                sys.stdout.write(json.dumps([position.offset, data]) + "\n")
                sys.stdout.flush()

    await asyncio.gather(*(publish(number) for number in range(PUBLISHERS)))
    if more_room:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await store.log.append("hub:journal", b"after", ttl=86_400.0, max_entries=1_000_000)
    await store.close()
    return failed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("run")
    parser.add_argument("each", type=int)
    parser.add_argument("size", type=int, nargs="?", default=0)
    parser.add_argument("--file-size", type=int)
    parser.add_argument("--more-room", action="store_true")
    parser.add_argument("--nobody", action="store_true")
    options = parser.parse_args()
    if options.file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.file_size, resource.RLIM_INFINITY))
    store = open_store(options.url)  # imports modules that the user `nobody` can't read
    if options.nobody:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    try:
        failures = asyncio.run(write(store, options.run, options.each, options.size, more_room=options.more_room))
    except LocalError as exc:
        sys.exit(str(exc))
    if failures:
        sys.stderr.write(f"{failures}\n")


if __name__ == "__main__":
    main()
