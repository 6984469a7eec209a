"""What the authorization server leaves with a browser: who it is, who has signed in there, and the question it shows.

All three are sealed, so that nothing is stored for those who merely open a page. A question is bound to the browser
that it was shown to: a form that comes from another browser, or from nowhere, is not taken.
"""

import hmac
from hashlib import sha256

from msgspec import Struct

from millstream._http.message import HttpRequest
from millstream.auth._authorization_server.login_methods import User
from millstream.auth._authorization_server.records import AuthorizationRequest, new_secret
from millstream.auth._authorization_server.vault import Vault
from millstream.auth._browser import cookie_of

QUESTION_SECONDS = 600.0
DEVICE_SECONDS = 180 * 86_400.0
PERSON_SECONDS = 8 * 3600.0
_QUESTION, _PERSON, _DEVICE = b"oauth question", b"oauth person", b"oauth device"
_MAX = 16 * 1024


class Question(Struct, frozen=True):
    """A request that a person looks at."""

    authorization: AuthorizationRequest
    until: float


class Person(Struct, frozen=True):
    """Somebody who has signed in at this browser."""

    user: User
    login: str
    until: float


class Device(Struct, frozen=True):
    """A browser from which a person has logged in by password."""

    name: str
    """As the person typed it, case-folded."""
    id: str
    until: float


class Tickets:
    """Makes and reads them."""

    def __init__(self, vault: Vault, *, secure: bool) -> None:
        """`secure`: browsers come by https."""
        self._vault = vault
        prefix, self._flags = ("__Host-", "; Secure") if secure else ("", "")
        self._browser_name = f"{prefix}millstream-browser"
        self._person_name = f"{prefix}millstream-person"
        self._device_name = f"{prefix}millstream-device"

    def browser(self, request: HttpRequest) -> tuple[str, bytes]:
        """The name of this browser, and the header line that gives it one, where it had none."""
        name = cookie_of(request, self._browser_name)
        if len(name) == 43:
            return name, b""
        name = new_secret()
        return name, self._cookie(self._browser_name, name, PERSON_SECONDS)

    def known_browser(self, request: HttpRequest) -> str:
        """The name of this browser; empty where it has none."""
        return cookie_of(request, self._browser_name)

    def seal_request(self, browser: str, authorization: AuthorizationRequest) -> str:
        """A question for this browser."""
        question = Question(authorization, self._vault.clock() + QUESTION_SECONDS)
        return self._vault.seal(_QUESTION, question, browser.encode())

    def open_request(self, browser: str, sealed: str) -> AuthorizationRequest | None:
        """What was asked; None for what was not asked of this browser, or too long ago."""
        if not browser or len(sealed) > _MAX:
            return None
        question = self._vault.open(_QUESTION, sealed, Question, browser.encode())
        return question.authorization if question is not None and question.until > self._vault.clock() else None

    def person(self, request: HttpRequest) -> Person | None:
        """Who has signed in at this browser."""
        sealed = cookie_of(request, self._person_name)
        found = self._vault.open(_PERSON, sealed, Person) if 0 < len(sealed) <= _MAX else None
        return found if found is not None and found.until > self._vault.clock() else None

    def keep(self, user: User, login: str) -> bytes:
        """The header line that makes a browser remember who has signed in."""
        person = Person(user, login, self._vault.clock() + PERSON_SECONDS)
        return self._cookie(self._person_name, self._vault.seal(_PERSON, person), PERSON_SECONDS)

    def forget(self) -> bytes:
        """The header line that makes it forget."""
        return self._cookie(self._person_name, "", 0)

    def device(self, request: HttpRequest, name: str) -> str:
        """Return the id of the device a request comes from; empty if no one has logged in from there by this name."""
        sealed = cookie_of(request, self._device_name)
        found = self._vault.open(_DEVICE, sealed, Device) if 0 < len(sealed) <= _MAX else None
        known = found is not None and found.name == name.casefold() and found.until > self._vault.clock()
        return found.id if found is not None and known else ""

    def keep_device(self, name: str) -> bytes:
        """Return the header line that makes a browser a known device of this name."""
        device = Device(name.casefold(), new_secret()[:22], self._vault.clock() + DEVICE_SECONDS)
        return self._cookie(self._device_name, self._vault.seal(_DEVICE, device), DEVICE_SECONDS)

    def _cookie(self, name: str, value: str, seconds: float) -> bytes:
        # Lax, since people come here from the pages of clients and of upstreams.
        flags = f"Path=/; Max-Age={seconds:.0f}; HttpOnly; SameSite=Lax{self._flags}"
        return f"set-cookie: {name}={value}; {flags}\r\n".encode("ascii")


def same_browser(kept: str, browser: str) -> bool:
    """Whether this is the browser of which this was kept."""
    return bool(browser) and hmac.compare_digest(kept, name_of(browser))


def name_of(browser: str) -> str:
    """What is kept of a browser."""
    return sha256(browser.encode("utf-8", "surrogatepass")).hexdigest()
