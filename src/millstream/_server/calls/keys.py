"""Where the secret for session ids and sealed state comes from.

In this order: the setting; the store's, where several workers share one; a file in the user's state directory, made
once and shared by all workers of the machine; a secret of this process, which no other worker and no restart knows.

Whoever can read the store can read the secret that is kept there, and make sessions with it: prefer the setting.
"""

import hmac
import os
import secrets
import stat
import sys
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec import Struct

from millstream._protocol.errors import LocalError
from millstream._stores.base import Store

MIN_SECRET: Final = 32
"""Characters."""
MAX_FILE: Final = 64 * 1024
"""Characters that are read of a key file."""
KEY_FILE: Final = "key"

_STORED: Final = "secret:seal"
_STORED_SECONDS: Final = 10 * 365 * 86_400.0
_KEPT: Final = 4
"""Secrets of a store that lost its data are kept for opening, the newest so many."""

_ADVICE: Final = "Set MILLSTREAM_KEY to a secret shared by all workers."
_HOW: Final = "Make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"


class Secrets(Struct, frozen=True):
    """The secrets of this worker and how it came by them."""

    values: tuple[bytes, ...]
    """The first seals, all open."""
    source: str
    """``setting``, ``store``, ``file`` or ``process``."""
    warning: str | None = None
    """What the person who runs the server should know at start."""


def load_secrets(setting: str, *, state_dir: Path | None = None) -> Secrets:
    """Find the secrets, or make one.

    Args:
        setting: `Settings.key`: secrets separated by commas, or empty.
        state_dir: the directory of the key file; by default the user's, see `state_directory`.

    Raises:
        ValueError: the setting has a secret that is too short to be one.
        LocalError: the key file is there and must not be used: others may know it, or it holds no secret.
    """
    if setting.strip():
        return Secrets(_parse(setting, "MILLSTREAM_KEY"), "setting")
    directory = state_dir or state_directory()
    if directory is None:
        return _of_process("The user has no state directory for a key file.")
    path = directory / KEY_FILE
    try:
        text = _read_or_create(path)
    except OSError as exc:
        return _of_process(f"The key file {path} cannot be used ({exc.strerror}).")
    try:
        return Secrets(_parse(text, str(path)), "file")
    except ValueError as exc:
        raise LocalError(f"{exc} Or delete the file: the next start makes another, and open sessions end.") from None


async def agree(store: Store, setting: str, own: Secrets | None = None) -> Secrets:
    """The secrets of all workers that share a store: those of the setting, or the one that the store keeps.

    Args:
        store: shared, and open.
        setting: as for `load_secrets`.
        own: what this worker used until the store lost its data. It is put there again; where another worker was
            faster, its secret seals from now on, and this one still opens.

    Raises:
        ValueError: the setting has a secret that is too short to be one.
        LocalError: the key file must not be used; the store does not answer, or keeps something that isn't a secret.
    """
    if setting.strip():
        return load_secrets(setting)
    if own is None:
        own = load_secrets("")
        mine = _derived(own.values[0])
    else:
        mine = own.values[0]
    kept = None
    while kept is None:
        kept = await store.kv.get(_STORED)
        if kept is None and await store.kv.compare_and_set(_STORED, None, mine, _STORED_SECONDS):
            kept = mine
    if len(kept) < MIN_SECRET:
        raise LocalError(f"The store keeps no secret under {_STORED}, but something else. Delete that. {_ADVICE}")
    others = tuple(value for value in own.values if value != kept)
    return Secrets((kept, *others)[:_KEPT], "store")


def state_directory(environ: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path | None:
    """The user's directory for state that outlives a process, by the habit of the platform; None without a home."""
    environ = os.environ if environ is None else environ
    if platform == "win32":
        base, below = environ.get("LOCALAPPDATA", ""), ""
    elif platform == "darwin":
        base, below = environ.get("HOME", ""), "Library/Application Support"
    elif Path(environ.get("XDG_STATE_HOME", "")).is_absolute():  # the XDG specification: a relative one is ignored
        base, below = environ["XDG_STATE_HOME"], ""
    else:
        base, below = environ.get("HOME", ""), ".local/state"
    return Path(base, below, "millstream") if base else None


def _derived(secret: bytes) -> bytes:
    """What goes into a store for the secret of a machine: the same again after a restart, and no way back to that one,
    which may be the secret of other servers, too.
    """
    return b64encode(hmac.digest(secret, _STORED.encode(), "sha256"))


def _of_process(why: str) -> Secrets:
    warning = f"{why} Session ids and sealed state end with this process, and no other worker knows them. {_ADVICE}"
    return Secrets((secrets.token_bytes(32),), "process", warning)


def _parse(text: str, where: str) -> tuple[bytes, ...]:
    values = [part.strip() for part in text.split(",")]
    if any(len(value) < MIN_SECRET for value in values):
        raise ValueError(f"{where} has a secret of fewer than {MIN_SECRET} characters. {_HOW}")
    return tuple(value.encode("utf-8", "surrogateescape") for value in values)


def _read_or_create(path: Path) -> str:
    try:
        return _read(path)
    except FileNotFoundError:
        _create(path)
        return _read(path)


def _read(path: Path) -> str:
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        # Of the opened file, not of the path, which may name another by then.
        _check_access(path, os.fstat(file.fileno()))
        return file.read(MAX_FILE)


def _check_access(path: Path, info: os.stat_result) -> None:
    if sys.platform == "win32":  # no mode bits there; the user's profile is private by its access list
        return
    if info.st_uid != os.geteuid():
        raise LocalError(f"The key file {path} belongs to another user (uid {info.st_uid}). {_ADVICE}")
    if info.st_mode & 0o077:
        mode = stat.S_IMODE(info.st_mode)
        raise LocalError(
            f"The key file {path} is open to other users (mode {mode:04o}, must be 0600). "
            f"If somebody may have read it, delete it: the next start makes another. If not: chmod 600 {path}"
        )


def _create(path: Path) -> None:
    """Make the key file whole or not at all; of several processes that try, one wins and the others find its file."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{KEY_FILE}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_urlsafe(32).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        # A rename would replace the winner's file; a link refuses.
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
