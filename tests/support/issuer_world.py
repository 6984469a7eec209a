"""A token issuer for tests: its keys, its tokens, and a small HTTP server that counts requests.

Tokens are signed by joserfc or manually, because libraries refuse to create some of them.
"""

import asyncio
import hmac
import json
import re
import time
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

from millstream._http.client.pool import fetch
from patience import WAIT

ISSUER = "https://issuer.example"
AUDIENCE = "https://mcp.example.com/mcp"
KEYS: dict[str, Any] = {
    "ES256": ECKey.generate_key("P-256", {"kid": "es"}),
    "RS256": RSAKey.generate_key(2048, {"kid": "rs"}),
    "PS256": RSAKey.generate_key(2048, {"kid": "ps"}),
    "Ed25519": OKPKey.generate_key("Ed25519", {"kid": "ed"}),
}
OTHER = ECKey.generate_key("P-256", {"kid": "es"})
"""Another issuer's key with the same id."""


def key_set(*names: str) -> dict[str, Any]:
    """Return the public keys in the issuer's format."""
    return {"keys": [KEYS[name].as_dict(private=False) for name in names or KEYS]}


def make_many_keys(count: int) -> dict[str, Any]:
    """Return a JWKS of `count` large keys, with dummy certificates. The last key is for ES256."""
    large = {**KEYS["RS256"].as_dict(private=False), "x5c": ["MIID" + "A" * 1000]}
    return {"keys": [*({**large, "kid": f"key{number}"} for number in range(count - 1)), *key_set("ES256")["keys"]]}


def claims(**changes: Any) -> dict[str, Any]:
    """Return valid claims with changes. None removes a claim."""
    now = int(time.time())
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "client_id": "desk", "iat": now, "exp": now + 86_400,
            "scope": "orders:write"}  # fmt: skip
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def token(said: dict[str, Any] | bytes | None = None, *, alg: str = "ES256", key: Any = None, **header: Any) -> str:
    """Return a signed token."""
    key = key or KEYS[alg]
    head = {"alg": alg, "typ": "at+jwt", "kid": key.kid, **header}
    payload = said if isinstance(said, bytes) else json.dumps(claims() if said is None else said).encode()
    registry = jws.JWSRegistry(algorithms=[alg], strict_check_header=False)
    registry.max_header_length = 1 << 20
    kept = {name: value for name, value in head.items() if value is not None}
    return jws.serialize_compact(kept, payload, key, registry=registry)


def craft_token(header: dict[str, Any], said: dict[str, Any] | None = None, signature: bytes = b"") -> str:
    """Return a token with any header and any signature."""
    parts = (json.dumps(header).encode(), json.dumps(claims() if said is None else said).encode(), signature)
    return ".".join(urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def sign_with_public_key(pem: bytes, **header: Any) -> str:
    """Return a token signed with a public key as if it were a shared secret, which libraries refuse to do."""
    unsigned = craft_token({"alg": "HS256", **header})[:-1]
    signature = hmac.digest(pem, unsigned.encode(), "sha256")
    return f"{unsigned}.{urlsafe_b64encode(signature).rstrip(b'=').decode()}"


Answer = Callable[[str, bytes], tuple[int, dict[str, str], bytes]]


class Issuer:
    """The HTTP server of the issuer."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.request_counts: Counter[str] = Counter()
        self.requests: list[bytes] = []
        self.answers: dict[str, Any] = {}
        """Path -> reply: JSON, raw bytes, or a function of the request."""
        self.gate: asyncio.Event | None = None
        """If set, replies wait for this event."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one request."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            request = head + await reader.readexactly(int(length[1]) if length else 0)
            path = head.split(b" ")[1].decode()
            self.request_counts[path] += 1
            self.requests.append(request)
            if self.gate is not None:
                await self.gate.wait()
            answer = self.answers.get(path, b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            answer = answer(request) if callable(answer) else answer
            if not isinstance(answer, bytes):
                body = json.dumps(answer).encode()
                answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            writer.write(answer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def run_issuer() -> AsyncIterator[Issuer]:
    """Run an issuer with metadata and keys for the length of the block."""
    issuer = Issuer(0)
    server = await asyncio.start_server(issuer.serve, "127.0.0.1", 0)
    issuer.port = server.sockets[0].getsockname()[1]
    issuer.url = f"http://127.0.0.1:{issuer.port}"
    issuer.answers["/.well-known/openid-configuration"] = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"}
    issuer.answers["/keys"] = key_set()
    # A suspended machine must not look like an unreachable issuer.
    with patch.dict(fetch.__kwdefaults__, seconds=WAIT):
        async with server:
            yield issuer
