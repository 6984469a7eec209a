"""Whether a write-ahead log is damaged in the middle. SQLite takes what is behind that for the work of a process that
died before it committed, and forgets it without a word.

https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from pathlib import Path
from struct import Struct, unpack
from typing import Final

_MAGIC: Final = 0x377F0682
"""The last bit says the order of the bytes in the words that are summed up."""
_HEADER: Final = Struct(">IIIIIIII")
_FRAME: Final = Struct(">IIIIII")
_MASK: Final = 0xFFFF_FFFF


def lost_commits(database: Path) -> bool:
    """Whether the log beside a database has commits behind a part that can't be read."""
    try:
        with database.with_name(f"{database.name}-wal").open("rb") as file:
            content = file.read()
    except OSError:
        return False
    if len(content) < _HEADER.size:
        return False
    magic, _, page, _, *salts, first, second = _HEADER.unpack_from(content)
    order = ">" if magic & 1 else "<"
    if magic & ~1 != _MAGIC or (first, second) != _sum(content[:24], 0, 0, order):
        return False  # SQLite reads nothing of it
    whole = True
    for at in range(_HEADER.size, len(content) - _FRAME.size - page + 1, _FRAME.size + page):
        _, commits, *mine, one, two = _FRAME.unpack_from(content, at)
        if mine != salts:  # of a life of the log before this one, unless it's damaged right here
            whole = False
            continue
        if whole:
            first, second = _sum(content[at : at + 8], first, second, order)
            first, second = _sum(content[at + 24 : at + 24 + page], first, second, order)
            whole = (one, two) == (first, second)
        if not whole and commits:
            return True
    return False


def _sum(data: bytes, first: int, second: int, order: str) -> tuple[int, int]:
    words = iter(unpack(f"{order}{len(data) // 4}I", data))
    for one, two in zip(words, words, strict=True):
        first = (first + one + second) & _MASK
        second = (second + two + first) & _MASK
    return first, second
