"""What the authorization server leaves with a browser: who it is, who has signed in there, and the question it shows.

All three are sealed, so that nothing is stored for those who merely open a page. A question is bound to the browser
that it was shown to: a form that comes from another browser, or from nowhere, is not taken.
"""

import hmac
from hashlib import sha256

from msgspec import Struct

from millstream._http.message import Request
from millstream.auth._browser import cookie_of
from millstream.auth._issuing.records import Asked, new_secret
from millstream.auth._issuing.vault import Vault
from millstream.auth._issuing.ways import User

QUESTION_SECONDS = 600.0
PERSON_SECONDS = 8 * 3600.0
_QUESTION, _PERSON = b"oauth question", b"oauth person"
_MAX = 16 * 1024


class Question(Struct, frozen=True):
    """A request that a person looks at."""

    asked: Asked
    until: float


class Person(Struct, frozen=True):
    """Somebody who has signed in at this browser."""

    user: User
    way: str
    until: float


class Tickets:
    """Makes and reads them."""

    def __init__(self, vault: Vault, *, secure: bool) -> None:
        """`secure`: browsers come by https."""
        self._vault = vault
        prefix, self._flags = ("__Host-", "; Secure") if secure else ("", "")
        self._browser_name = f"{prefix}millstream-browser"
        self._person_name = f"{prefix}millstream-person"

    def browser(self, request: Request) -> tuple[str, bytes]:
        """The name of this browser, and the header line that gives it one, where it had none."""
        name = cookie_of(request, self._browser_name)
        if len(name) == 43:
            return name, b""
        name = new_secret()
        return name, self._cookie(self._browser_name, name, PERSON_SECONDS)

    def known_browser(self, request: Request) -> str:
        """The name of this browser; empty where it has none."""
        return cookie_of(request, self._browser_name)

    def ask(self, browser: str, asked: Asked) -> str:
        """A question for this browser."""
        question = Question(asked, self._vault.clock() + QUESTION_SECONDS)
        return self._vault.seal(_QUESTION, question, browser.encode())

    def asked(self, browser: str, sealed: str) -> Asked | None:
        """What was asked; None for what was not asked of this browser, or too long ago."""
        if not browser or len(sealed) > _MAX:
            return None
        question = self._vault.open(_QUESTION, sealed, Question, browser.encode())
        return question.asked if question is not None and question.until > self._vault.clock() else None

    def person(self, request: Request) -> Person | None:
        """Who has signed in at this browser."""
        sealed = cookie_of(request, self._person_name)
        found = self._vault.open(_PERSON, sealed, Person) if 0 < len(sealed) <= _MAX else None
        return found if found is not None and found.until > self._vault.clock() else None

    def keep(self, user: User, way: str) -> bytes:
        """The header line that makes a browser remember who has signed in."""
        person = Person(user, way, self._vault.clock() + PERSON_SECONDS)
        return self._cookie(self._person_name, self._vault.seal(_PERSON, person), PERSON_SECONDS)

    def forget(self) -> bytes:
        """The header line that makes it forget."""
        return self._cookie(self._person_name, "", 0)

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
