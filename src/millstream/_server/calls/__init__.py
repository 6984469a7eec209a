"""A request in progress, and the state that requests share. This module finds the secret for session ids and sealed
state. It uses the first of these sources: the setting. The store, if several workers share one; a file in the user's
state directory, created once and shared by all workers of the machine. A secret of this process, which is lost when it
ends.

Anyone who can read the store can read a secret stored there and forge sessions. Prefer the setting.
"""

import hmac
import os
import secrets
import stat
import sys
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from millstream._protocol.errors import LocalError
from millstream._stores.store import Store
from millstream.files import write_private

MIN_SECRET = 32
"""Minimum number of characters."""
MAX_FILE = 64 * 1024
"""Maximum number of characters read from a key file."""
KEY_FILE = "key"

_STORE_KEY = "secret:seal"
_STORE_TTL = 10 * 365 * 86_400.0
_MAX_SECRETS = 4
"""Number of earlier secrets kept for opening, after the store has lost its data."""

_ADVICE = "Set MILLSTREAM_SECRET_KEY to a secret shared by all workers."
_HOW = "Create one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"


class Secrets(Struct, frozen=True):
    """The secrets of this worker, and their source."""

    values: tuple[bytes, ...]
    """The first one seals, and all of them open."""
    source: str
    """``setting``, ``store``, ``file``, or ``process``."""
    warning: str | None = None
    """A warning for the operator, to log at start."""


def load_secrets(setting: str, *, state_dir: Path | None = None) -> Secrets:
    """Find the secrets, or create one.

    Args:
        setting: `Settings.secret_key`: secrets separated by commas, or empty.
        state_dir: The directory of the key file. The default is the user's (see `state_directory`).

    Raises:
        ValueError: A secret in the setting is too short.
        LocalError: The key file must not be used: other users can read it, or it has no secret.
    """
    if setting.strip():
        return Secrets(_parse(setting, "MILLSTREAM_SECRET_KEY"), "setting")
    directory = state_dir or state_directory()
    if directory is None:
        return _of_process("The user has no state directory for a key file.")
    path = directory / KEY_FILE
    try:
        text = _read_or_create(path)
    except OSError as exc:
        return _of_process(f"The key file {path} can't be used ({exc.strerror}).")
    try:
        return Secrets(_parse(text, str(path)), "file")
    except ValueError as exc:
        raise LocalError(
            f"{exc} Alternatively, delete the file. The next start creates another one, and open sessions end."
        ) from None


async def agree(store: Store, setting: str, own: Secrets | None = None) -> Secrets:
    """Return the secrets of all workers that share a store: from the setting, or else from the store.

    Args:
        store: A shared and open store.
        setting: As for `load_secrets`.
        own: This worker's secrets from before the store lost its data. They are stored again. If another worker was
            faster,
            its secret seals from now on, and this one still opens.

    Raises:
        ValueError: A secret in the setting is too short.
        LocalError: The key file must not be used, the store doesn't respond, or its entry isn't a secret.
    """
    if setting.strip():
        return load_secrets(setting)
    if own is None:
        own = load_secrets("")
        # The machine's secret in a form for a store: it's the same after a restart and doesn't reveal the secret, which
        # other servers may also use.
        mine = b64encode(hmac.digest(own.values[0], _STORE_KEY.encode(), "sha256"))
    else:
        mine = own.values[0]
    kept = None
    while kept is None:
        kept = await store.kv.get(_STORE_KEY)
        if kept is None and await store.kv.compare_and_set(_STORE_KEY, None, mine, _STORE_TTL):
            kept = mine
    if len(kept) < MIN_SECRET:
        raise LocalError(f"The store's entry {_STORE_KEY} isn't a secret. Delete it. {_ADVICE}")
    others = tuple(value for value in own.values if value != kept)
    return Secrets((kept, *others)[:_MAX_SECRETS], "store")


def state_directory(environ: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path | None:
    """Return the platform's directory for the user's persistent state, or None without a home directory."""
    environ = os.environ if environ is None else environ
    if platform == "win32":
        base, below = environ.get("LOCALAPPDATA", ""), ""
    elif platform == "darwin":
        base, below = environ.get("HOME", ""), "Library/Application Support"
    elif Path(environ.get("XDG_STATE_HOME", "")).is_absolute():  # XDG: ignore relative paths
        base, below = environ["XDG_STATE_HOME"], ""
    else:
        base, below = environ.get("HOME", ""), ".local/state"
    return Path(base, below, "millstream") if base else None


def _of_process(why: str) -> Secrets:
    warning = (
        f"{why} Session ids and sealed state are lost when this process ends, and no other worker can read "
        f"them. {_ADVICE}"
    )
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
        write_private(path, secrets.token_urlsafe(32).encode() + b"\n", overwrite=False)
        return _read(path)


def _read(path: Path) -> str:
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        # Check the opened file, because the path may now point to another one.
        _check_access(path, os.fstat(file.fileno()))
        return file.read(MAX_FILE)


def _check_access(path: Path, info: os.stat_result) -> None:
    if sys.platform == "win32":  # no mode bits; the access list protects the user's profile
        return
    if info.st_uid != os.geteuid():
        raise LocalError(f"The key file {path} belongs to another user (uid {info.st_uid}). {_ADVICE}")
    if info.st_mode & 0o077:
        mode = stat.S_IMODE(info.st_mode)
        raise LocalError(
            f"The key file {path} is accessible to other users (mode {mode:04o}, must be 0600). If another user "
            f"may have read it, delete it; the next start creates another one. Otherwise: chmod 600 {path}"
        )
