"""Authentication by a program's own token check, for the server that runs it."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from math import inf
from threading import Thread
from typing import Any

from starlette.requests import HTTPConnection

from millstream import Principal
from millstream._gateway.programs.program import (
    SIGN_IN,
    TOKEN,
    Program,
    ProgramApplication,
    ProgramPath,
    caller_of,
    logger,
)
from millstream._http.asgi import HostedApplication
from millstream._http.message import Handler, HttpRequest
from millstream._override import override
from millstream.auth import AuthMethod, Identity, Unavailable
from millstream.protocol import is_array, members

_VERDICT_SECONDS = 10.0
"""Seconds that a program's verdict is valid, unless the token expires earlier."""
_WELL_KNOWN = "/.well-known/oauth-protected-resource"
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class ProgramAuth(AuthMethod):
    """Authenticates callers by the program's own token check. The program's sign-in paths are unchanged."""

    shows = True

    def __init__(self, program: Program, side: ProgramApplication) -> None:
        """Wrap the token check of an application.

        Args:
            program: Protected program; it remembers its callers.
            side: Its HTTP side.
        """
        self._program = program
        self._backend: Any = side.backend
        self._hosted = HostedApplication(side.application)
        self._paths = [each for each in side.own_paths() if each.path.startswith(SIGN_IN)]
        self.scopes = side.required_scopes
        found = _resource_of(self._hosted, self._paths)
        self.resource = str(found.get("resource") or "").rstrip("/")
        servers = found.get("authorization_servers")
        self.issuers = tuple(map(str, servers)) if is_array(servers) else ()

    @override
    async def identify(self, credential: str) -> Identity | None:
        """Return the identity of a token's owner, or None for an invalid token.

        Raises:
            Unavailable: The program's check failed.
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
            logger.exception("The program's token check failed.")
            raise Unavailable("The token can't be verified at the moment. Try again later.") from error
        if found is None:
            return None
        credentials, user = found
        token: Any = getattr(user, TOKEN, None)
        seconds, until = _VERDICT_SECONDS, inf
        expires: object = getattr(token, "expires_at", None)
        if isinstance(expires, int | float):
            until = float(expires)
            seconds = min(seconds, until - time.time())
            if seconds <= 0:
                return None
        client = str(getattr(token, "client_id", "") or "")
        claims = members(getattr(token, "claims", None))
        subject = str(getattr(token, "subject", None) or claims.get("sub") or "")
        if not subject:  # all people of an OAuth client would be one principal
            subject = f"{client or user.display_name} {sha256(credential.encode()).hexdigest()[:16]}"
        issuer = str(claims.get("iss") or "")
        scopes = frozenset(map(str, credentials.scopes))
        principal = Principal(subject, issuer, client, scopes, {TOKEN: token}, until)
        self._program.users.keep(caller_of(principal), user)
        return Identity(principal, seconds)

    @override
    def holds(self, id: str) -> bool:
        """Return True: programs don't report revocations, so their verdicts are valid only for seconds."""
        return True

    @override
    def paths(self) -> Mapping[str, Mapping[str, Handler]]:
        """Return the paths with the program's protected resource metadata."""
        return {each.path: dict.fromkeys(sorted(each.methods or _METHODS), self._hosted.serve) for each in self._paths}


def _resource_of(hosted: HostedApplication, paths: Sequence[ProgramPath]) -> Mapping[str, Any]:
    """Return the program's protected resource metadata (RFC 9728), or empty if it has none."""
    path = next((each.path for each in paths if each.path.startswith(_WELL_KNOWN)), "")
    if not path:
        return {}
    replies: list[Any] = []
    request = HttpRequest("GET", path, ((b"host", b"localhost"),), {})
    # The path doesn't need the program's state, so a separate loop can serve it from anywhere.
    thread = Thread(target=lambda: replies.append(asyncio.run(hosted.serve(request))))
    thread.start()
    thread.join()
    try:
        return members(json.loads(replies[0].body))
    except (ValueError, LookupError, AttributeError):
        return {}
