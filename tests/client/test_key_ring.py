"""Tokens in the system's key ring, or else in a file.

The key ring is `keyring` with a backend in memory: https://keyring.readthedocs.io/en/latest/#writing-your-own-backend
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.backends.fail import Keyring as NoKeyring
from keyring.errors import KeyringLocked

from millstream.client._oauth import FileTokenStore, Registration, StoredCredentials, Tokens
from millstream.client._oauth.flow import default_store
from millstream.client._oauth.keyring_store import KeyringTokenStore


class InMemory(KeyringBackend):
    """A key ring with the limit of Windows."""

    priority = 1  # type: ignore[assignment]  # as keyring's documentation has it

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}
        self.locked = False

    def get_password(self, service: str, username: str) -> str | None:
        if self.locked:
            raise KeyringLocked("locked")
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        if self.locked:
            raise KeyringLocked("locked")
        assert len(password) <= 1280
        self.kept[(service, username)] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.kept[(service, username)]


@pytest.fixture
def ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemory]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    before, backend = keyring.get_keyring(), InMemory()
    keyring.set_keyring(backend)
    yield backend
    keyring.set_keyring(before)


def kept(count: int) -> StoredCredentials:
    return StoredCredentials(
        {"https://as.example": Registration("me")}, {f"https://s{n}.example": Tokens("t" * 900) for n in range(count)}
    )


def test_tokens_are_kept_in_the_key_ring(ring: InMemory) -> None:
    store = default_store()
    assert isinstance(store, KeyringTokenStore)
    for count in (5, 1, 3):
        store.save(kept(count))
        assert default_store().load() == kept(count)
    assert not FileTokenStore().path.exists()
    store.save(kept(0))
    assert len(ring.kept) == 1


def test_tokens_in_the_file_move_to_the_key_ring(ring: InMemory) -> None:
    FileTokenStore().save(kept(1))
    store = default_store()
    assert store.load() == kept(1)
    store.save(store.load())
    assert not FileTokenStore().path.exists()
    assert store.load() == kept(1)


def test_locked_key_ring_falls_back_to_the_file(ring: InMemory) -> None:
    ring.locked = True
    default_store().save(kept(1))
    assert FileTokenStore().load() == kept(1) == default_store().load()


def test_unreadable_tokens_are_ignored(ring: InMemory) -> None:
    ring.kept[("millstream", "tokens 0")] = "{"
    assert default_store().load() == StoredCredentials({}, {})


def test_file_is_used_without_the_keyring_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    monkeypatch.delitem(sys.modules, "millstream.client._oauth.keyring_store", raising=False)
    assert isinstance(default_store(), FileTokenStore)


def test_file_is_used_without_a_system_key_ring(ring: InMemory) -> None:
    keyring.set_keyring(NoKeyring())
    assert isinstance(default_store(), FileTokenStore)
