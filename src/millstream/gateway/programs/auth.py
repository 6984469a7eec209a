"""A program's own check of tokens, in front of every path of the server that runs it."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from math import inf
from threading import Thread
from typing import Any, cast

from starlette.requests import HTTPConnection

from millstream._http.asgi.hosted_application import HostedApplication
from millstream._http.message import Handler
from millstream._protocol.principal import Principal
from millstream.auth._method import AuthMethod, Identity, Unavailable
from millstream.gateway.programs.http import SIGN_IN, HttpSide

logger = logging.getLogger("millstream.gateway")

_SECONDS = 10.0
"""How long a program's verdict is valid, unless the token expires earlier."""
_WELL_KNOWN = "/.well-known/oauth-protected-resource"
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
TOKEN = "access_token"  # noqa: S105  the name of a claim
"""The claim that has the token as the program's library describes it."""


class ProgramAuth(AuthMethod):
    """Asks the program whether a token is valid. Its paths to sign in stay as they are."""

    shows = True

    def __init__(self, side: HttpSide, remember: Callable[[str, Any], None]) -> None:
        """Take over what an application checks.

        Args:
            side: of a program that is protected.
            remember: called with a caller and what the library knows of them.
        """
        self._remember = remember
        self._backend: Any = side.backend
        self._hosted = HostedApplication(side.application)
        self._paths = [each for each in side.own_paths() if each.path.startswith(SIGN_IN)]
        self.scopes = side.required_scopes
        found = _resource_of(side)
        self.resource = str(found.get("resource") or "").rstrip("/")
        servers: object = found.get("authorization_servers")
        self.issuers = tuple(map(str, cast("list[object]", servers))) if isinstance(servers, list) else ()

    async def identify(self, credential: str) -> Identity | None:
        """Return the identity of a token's owner; None for an invalid token.

        Raises:
            Unavailable: the program's check failed.
        """
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "query_string": b"",
            "headers": [(b"authorization", b"Bearer " + credential.encode())],
        }
        try:
            found: Any = await self._backend.authenticate(HTTPConnection(scope))
        except Exception as error:
            logger.exception("The program's check of tokens failed.")
            raise Unavailable("The token can't be verified now. Try again later.") from error
        if found is None:
            return None
        granted, user = found
        token: Any = getattr(user, TOKEN, None)
        seconds, until = _SECONDS, inf
        expires: object = getattr(token, "expires_at", None)
        if isinstance(expires, int | float):
            until = float(expires)
            seconds = min(seconds, until - time.time())
            if seconds <= 0:
                return None
        client = str(getattr(token, "client_id", "") or "")
        subject = str(getattr(token, "subject", None) or _claim(token, "sub") or client or user.display_name)
        issuer = str(_claim(token, "iss") or "")
        scopes = frozenset(map(str, granted.scopes))
        principal = Principal(subject, issuer, client, scopes, {TOKEN: token}, until)
        self._remember(caller_of(principal), user)
        return Identity(principal, seconds)

    def holds(self, id: str) -> bool:
        """Return True: a program reports no revocations, so its verdicts are valid for seconds only."""
        return True

    def paths(self) -> Mapping[str, Mapping[str, Handler]]:
        """Return the paths by which the program says how to sign in."""
        return {each.path: dict.fromkeys(sorted(each.methods or _METHODS), self._hosted.serve) for each in self._paths}


def caller_of(principal: Principal) -> str:
    """Return what tells callers apart: each token has sessions of its own, because one may grant more than another."""
    credential: object = getattr(principal.claims.get(TOKEN), "token", None)
    return sha256(credential.encode()).hexdigest() if isinstance(credential, str) else principal.id


def _claim(token: Any, name: str) -> Any:
    claims: Any = getattr(token, "claims", None)
    return cast("Mapping[str, Any]", claims).get(name) if isinstance(claims, Mapping) else None


def _resource_of(side: HttpSide) -> Mapping[str, Any]:
    """Return what the program says about itself as a protected resource (RFC 9728); empty if it says nothing."""
    path = next((each.path for each in side.own_paths() if each.path.startswith(_WELL_KNOWN)), "")
    if not path:
        return {}
    found: list[bytes] = []
    # The path needs nothing of the program, so a loop of its own serves it, wherever this is called.
    thread = Thread(target=lambda: found.append(asyncio.run(_get(side.application, path))))
    thread.start()
    thread.join()
    try:
        read: Any = json.loads(b"".join(found))
    except ValueError:
        return {}
    return cast("dict[str, Any]", read) if isinstance(read, dict) else {}


async def _get(application: Any, path: str) -> bytes:
    """Return the body of a reply of an ASGI application."""
    parts: list[bytes] = []

    async def receive() -> Mapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Mapping[str, Any]) -> None:
        parts.append(message.get("body", b""))

    scope = {
        "type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "path": path, "root_path": "",
        "raw_path": path.encode(), "query_string": b"", "headers": [(b"host", b"localhost")],
        "client": None, "server": ("localhost", 80),
    }  # fmt: skip
    await application(scope, receive, send)
    return b"".join(parts)
