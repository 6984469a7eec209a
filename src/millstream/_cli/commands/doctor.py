"""``millstream doctor``: connect step by step, and show which step fails."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from millstream._cli.connect_options import (
    FAILED,
    ConnectOptions,
    Target,
    Timeout,
    list_items,
    run_to_exit,
    status_of,
)
from millstream._cli.options import Json
from millstream._cli.tables import brief, print_json, print_text
from millstream._http.client.connection import HttpReply
from millstream._http.client.pool import ConnectionPool, connect_error, os_error_text, tls_error
from millstream._http.client.url import Url, proxy_for
from millstream._protocol.revisions import BY_DATE
from millstream.client._client import Client
from millstream.client._endpoint import Endpoint
from millstream.client._errors import AccessDenied, ClientError, ConnectFailed, ConnectionLost, NotMcp, TlsFailed
from millstream.client._targets import Remote, find


class DiagnosticStep(Struct, frozen=True):
    """One step, and its result."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class _PatientOptions(ConnectOptions):
    timeout: Timeout = 20


_DEFAULTS = _PatientOptions()


def doctor(
    target: Target,
    /,
    *,
    options: _PatientOptions = _DEFAULTS,
    json: Json = False,
) -> None:
    """Diagnose why a connection fails.

    It resolves the name, connects, checks the certificate, sends HTTP requests, detects the protocol revision, and
    checks the headers that browsers need. It doesn't call tools. The exit status is that of the first failed step.

    **Example**

    - `millstream doctor https://example.com/mcp`
    """

    async def work() -> int:
        steps: list[DiagnosticStep] = []
        failed: ClientError | None = None
        try:
            async for step in examine(target, options):
                steps.append(step)
                if not json:
                    show(step)
        except ClientError as exc:
            failed = exc
            steps.append(
                DiagnosticStep(
                    "connection",
                    ok=False,
                    found=exc.message if isinstance(exc, AccessDenied | ConnectFailed | NotMcp) else str(exc),
                    remedy=remedy_of(exc),
                )
            )
            if not json:
                show(steps[-1])
        well = all(step.ok for step in steps)
        if json:
            print_json({"server": target, "ok": well, "steps": steps})
        return status_of(failed) if failed is not None else 0 if well else FAILED

    run_to_exit(work)


def show(step: DiagnosticStep) -> None:
    """Print one line, and another one with the remedy."""
    print_text(f"{'ok  ' if step.ok else 'FAIL'}  {step.name}: {brief(step.found)}")
    if step.remedy:
        print_text(f"      Fix: {step.remedy}")


async def examine(target: str, options: ConnectOptions) -> AsyncIterator[DiagnosticStep]:
    """Yield the steps of a connection.

    Raises:
        ClientError: A step failed; later steps are skipped.
    """
    place = find(target, env={}, cwd=None)
    if isinstance(place, Remote):
        url = place.url
        proxy = proxy_for(url)
        if proxy is not None:
            yield DiagnosticStep("proxy", ok=True, found=f"{url.host} is reached through {proxy}, from the environment")
        else:
            yield await looked_up(url, options.timeout)
        if url.secure and proxy is None:
            yield await check_certificate(url, options.timeout)
    begun = time.perf_counter()
    async with options.client(target) as client:
        took = (time.perf_counter() - begun) * 1000
        yield DiagnosticStep(
            "protocol",
            ok=True,
            found=f"{client.server.name or 'it'} uses {client.revision} over {client.transport} ({took:.0f} ms)",
        )
        yield await count_items(client)
        if client.transport == "stdio" and BY_DATE[client.revision].handshake:
            yield DiagnosticStep(
                "questions",
                ok=True,
                found="questions and log messages on stdio don't say which call they belong to",
                remedy='In a gateway for several people, set isolation = "per_principal" for it if its tools ask.',
            )
    if isinstance(place, Remote) and place.url.scheme.startswith("http"):
        async for step in seen_by_browsers(place.url, {**place.headers, **options.headers(target)}, options.timeout):
            yield step


async def looked_up(url: Url, seconds: float) -> DiagnosticStep:
    """Resolve a host.

    Raises:
        ConnectFailed: The host has no address, or the resolver timed out.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds):
            known = await loop.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except TimeoutError as exc:
        raise ConnectFailed(f"The name {url.host} couldn't be resolved within {seconds:g} seconds.") from exc
    except OSError as exc:
        raise ConnectFailed(f"The name {url.host} can't be resolved: {os_error_text(exc)}.") from exc
    addresses = sorted({str(each[4][0]) for each in known})
    found = (
        f"{url.host} is already an address"
        if addresses == [url.host]
        else f"{url.host} resolves to {', '.join(addresses)}"
    )
    return DiagnosticStep("name", ok=True, found=found)


async def check_certificate(url: Url, seconds: float) -> DiagnosticStep:
    """Check the certificate of a server.

    Raises:
        ConnectFailed: The server isn't responding.
        TlsFailed: The certificate isn't trusted.
    """
    context = ssl.create_default_context()
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(url.host, url.port, ssl=context)
    except TimeoutError as exc:
        hint = "Use http:// instead of https:// if that's intended."
        raise ConnectFailed(f"{url.origin} sent no certificate within {seconds:g} seconds. {hint}") from exc
    except ssl.SSLCertVerificationError as exc:
        raise tls_error(url, exc) from exc
    except ssl.SSLError as exc:
        raise TlsFailed(
            f"{url.origin} doesn't speak TLS ({exc.reason or exc}).", remedy="Use http:// if the server has no TLS."
        ) from exc
    except OSError as exc:
        raise connect_error(url, exc) from exc
    certificate: dict[str, Any] = writer.get_extra_info("peercert") or {}
    writer.close()
    return DiagnosticStep(
        "certificate", ok=True, found=f"trusted until {certificate.get('notAfter', 'an unknown date')}"
    )


async def count_items(client: Client) -> DiagnosticStep:
    """Count the tools, resources, templates, and prompts."""
    counts = {
        "tool": len(await list_items(client.tools)),
        "resource": len(await list_items(client.resources)),
        "template": len(await list_items(client.templates)),
        "prompt": len(await list_items(client.prompts)),
    }
    text = ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items())
    nothing = not any(counts.values())
    return DiagnosticStep(
        "offers", ok=not nothing, found=text, remedy="Register something, or sign in." if nothing else ""
    )


async def seen_by_browsers(url: Url, headers: Mapping[str, str], seconds: float) -> AsyncIterator[DiagnosticStep]:
    """Check CORS for browsers, and report proxies, which may compress or buffer."""
    pool = ConnectionPool(url, max_connections=2, max_body=1 << 20, connect_timeout=seconds, tls=None)
    endpoint = Endpoint(url, headers, pool)
    ask = "Origin: https://example.com\r\nAccess-Control-Request-Method: POST\r\n"
    try:
        async with asyncio.timeout(seconds):
            reply = await endpoint.send("OPTIONS", ask, repeatable=True)
        yield cors(reply)
        proxies = [name for name in (b"via", b"x-cache", b"cf-ray", b"x-served-by") if name in reply.headers]
        if proxies:
            shown = ", ".join(name.decode() for name in proxies)
            remedy = "Turn off buffering and compression for event streams: in nginx, proxy_buffering off."
            yield DiagnosticStep("proxy", ok=True, found=f"there is one ({shown})", remedy=remedy)
    except (ClientError, TimeoutError) as exc:
        how = "get no answer" if isinstance(exc, TimeoutError | ConnectFailed | ConnectionLost) else "are refused"
        yield DiagnosticStep(
            "browsers", ok=True, found=f"preflight requests {how}: pages of other origins can't use it"
        )
    finally:
        await pool.close()


def cors(reply: HttpReply) -> DiagnosticStep:
    """Check whether pages of other origins may use the server."""
    allowed = reply.header(b"access-control-allow-origin")
    text = f"pages of {allowed} may use it" if allowed else "pages of other origins can't use it, which is safe"
    return DiagnosticStep("browsers", ok=True, found=text)


def remedy_of(error: ClientError) -> str:
    """Return the remedy of an error, or the usual one for its type."""
    if isinstance(error, NotMcp | TlsFailed) and error.remedy:
        return error.remedy
    remedies: list[tuple[type[ClientError], str]] = [
        (TlsFailed, "Ask for a certificate that the system trusts, or check the clock of this machine."),
        (
            ConnectFailed,
            "Check the host and port, and that the server is running. A server on 127.0.0.1 is local only.",
        ),
        (AccessDenied, "Sign in with --login, or send a valid key: --auth KEY."),
        (NotMcp, "Check the path: most servers are at /mcp, old ones at /sse."),
    ]
    return next((text for kind, text in remedies if isinstance(error, kind)), "")
