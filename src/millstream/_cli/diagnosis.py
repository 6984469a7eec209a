"""Commands that examine a server: ``info``, ``ping``, ``doctor``, ``tokens``, and ``watch``."""

import asyncio
import shutil
import socket
import ssl
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number
from msgspec import Struct

from millstream._cli.connect_options import (
    DEFAULTS,
    FAILED,
    ConnectOptions,
    Target,
    Timeout,
    explain,
    list_items,
    status_of,
    version_of,
)
from millstream._cli.errors import finite
from millstream._cli.items import check_resource, wait_for_upstreams
from millstream._cli.program import EnvFile, Json
from millstream._cli.signals import stop_without_reader
from millstream._cli.tables import brief, one_line, print_json, print_rows, print_text, style
from millstream._http.client.connection import HttpReply
from millstream._http.client.pool import ConnectionPool, connect_error, os_error_text, request
from millstream._http.client.url import Url, proxy_for
from millstream._http.hosts import parse_authority
from millstream._modules import split_target
from millstream._protocol.notifications import ToolDescription
from millstream._protocol.revisions import BY_DATE
from millstream._text import fit, pluralize
from millstream._troubles import Trouble, UpstreamState, local_time
from millstream.client import AccessDenied, Client, ClientError, ConnectFailed, ConnectionLost, NotMcp, TlsFailed
from millstream.client._endpoint import Endpoint
from millstream.client._server_messages import Notification
from millstream.client._targets import Remote, find_server, needs_gateway

_PINGS = 5


async def latency_ms(client: Client) -> float:
    """Ping the server and return the milliseconds until the response."""
    begun = time.perf_counter()
    await client.ping()
    return (time.perf_counter() - begun) * 1000


async def info(target: Target, /, *, options: ConnectOptions = DEFAULTS, json: Json = False) -> None:
    """Show a server's identity, protocol, capabilities, and response time (the median of five).

    **Example**

    - `millstream info "uvx mcp-server-time"`
    """
    async with options.client(target) as client:
        times = sorted([await latency_ms(client) for _ in range(_PINGS)])
        found: dict[str, Any] = {
            "name": client.server.name,
            **({"version": version} if (version := version_of(client)) else {}),
            "revision": client.revision,
            "transport": client.transport,
            "capabilities": dict(client.capabilities),
            "instructions": client.instructions,
            "latencyMs": round(times[_PINGS // 2], 3),
        }
        if json:
            print_json(found)
            return
        found["capabilities"] = ", ".join(client.capabilities) or "none"
        found["latency"] = f"{found.pop('latencyMs')} ms"
        print_rows([[name, str(value)] for name, value in found.items() if value], ["WHAT", "VALUE"])


async def ping(
    target: Target,
    /,
    *,
    count: Annotated[int, Parameter(alias="-c", validator=Number(gte=1))] = 1,
    interval: Annotated[float, Parameter(metavar="SECONDS", validator=(finite, Number(gte=0)))] = 1.0,
    options: ConnectOptions = DEFAULTS,
    json: Json = False,
) -> None:
    """Check whether a server responds, and how fast, not including the time to connect.

    **Example**

    - `millstream ping http://127.0.0.1:8000/mcp --count 5 --interval 0.2`

    Args:
        count: Number of pings.
        interval: Seconds between two pings.
    """
    async with options.client(target) as client:
        times: list[float] = []
        for number in range(count):
            if number:
                await asyncio.sleep(interval)
            times.append(await latency_ms(client))
            if not json:
                print_text(f"{one_line(client.server.name) or target}: {times[-1]:.2f} ms")
        if json:
            print_json({"server": client.server.name, "revision": client.revision, "ms": [round(t, 3) for t in times]})


class _Configuration(Struct):
    file: str
    version: int
    digest: str
    refused: str = ""


class _Set(Struct):
    name: str
    path: str
    items: dict[str, int]
    scopes: list[str] = []
    groups: list[str] = []
    unused: list[str] = []


class _Store(Struct, frozen=True):
    kind: str = ""
    up: bool = True


class _Health(Struct):
    status: str = ""
    features: list[str] = []
    reasons: list[str] = []
    troubles: list[Trouble] = []
    gateway: str = ""
    store: _Store = _Store()
    configuration: _Configuration | None = None
    sets: list[_Set] = []
    sharing: list[str] = []
    asking_tools: list[str] = []
    upstream_states: list[UpstreamState] = []


class DiagnosticStep(Struct, frozen=True):
    """One step, and its result."""

    name: str
    found: str
    ok: bool = True
    remedy: str = ""


@dataclass(frozen=True, kw_only=True, repr=False)
class _PatientOptions(ConnectOptions):
    timeout: Timeout = 20


_DEFAULTS = _PatientOptions()


async def doctor(
    target: Target, /, *, env_file: EnvFile = None, options: _PatientOptions = _DEFAULTS, json: Json = False
) -> int:
    """Diagnose why a connection fails, or which of a gateway's upstreams can't be used.

    It resolves the name, connects, checks the certificate, sends HTTP requests, detects the protocol revision, and
    checks the headers that browsers need. If sign-in is required, it follows the metadata to the issuer. It doesn't
    call tools. The exit status is that of the first failed step.
    For a gateway, it adds a line for each upstream: at its URL with a key that has `millstream:watch`, or from its
    file, also while the gateway is running.

    **Examples**

    - `millstream doctor https://example.com/mcp`

    - `millstream doctor gateway.toml`
    """
    from millstream._cli.serve import use_file  # noqa: PLC0415  help does without a server

    use_file(env_file)
    steps: list[DiagnosticStep] = []

    def add(step: DiagnosticStep) -> None:
        steps.append(step)
        if not json:
            columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
            label, color = ("warn", "yellow") if step.remedy else ("ok  ", "green")
            if not step.ok:
                label, color = "FAIL", "red"
            line = fit(f"{label}  ", f"{step.name}: {brief(step.found)}", columns)
            sys.stdout.write(style(line[:4], color))
            print_text(line[4:])
            if step.remedy:
                print_text(fit("      Fix: ", step.remedy, columns))

    failed = 0
    try:
        async for step in examine(target, options):
            add(step)
    except ClientError as exc:
        failed = status_of(exc)
        found = exc.message if isinstance(exc, AccessDenied | ConnectFailed | NotMcp) else str(exc)
        add(DiagnosticStep("connection", found, ok=False, remedy=remedy_of(exc)))
        if isinstance(exc, AccessDenied) or options.login:
            async for step in sign_in_steps(target, exc.challenge if isinstance(exc, AccessDenied) else ""):
                add(step)
    well = all(step.ok for step in steps)
    if json:
        print_json({"server": target, "ok": well, "steps": steps})
    return failed or (0 if well else FAILED)


async def examine(target: str, options: ConnectOptions) -> AsyncIterator[DiagnosticStep]:
    """Yield the steps of a connection.

    Raises:
        ClientError: A step failed; later steps are skipped.
    """
    place = find_server(target, env={}, cwd=None)
    if isinstance(place, Remote):
        url = place.url
        proxy = proxy_for(url)
        if proxy is not None:
            yield DiagnosticStep("proxy", f"{url.host} is reached through {proxy}, from the environment")
        else:
            yield await looked_up(url, options.timeout)
        if url.secure and proxy is None:
            yield await check_certificate(url, options.timeout)
    begun = time.perf_counter()
    async with open_target(target, options) as (client, describe):
        took = (time.perf_counter() - begun) * 1000
        yield DiagnosticStep(
            "protocol", f"{client.server.name or 'it'} uses {client.revision} over {client.transport} ({took:.0f} ms)"
        )
        await wait_for_upstreams(client, options.timeout)
        tools = await list_items(client.tools)
        states = describe().upstream_states
        fails = any(not upstream_step(each).ok for each in states)
        yield await count_items(client, len(tools), is_gateway=bool(states), fails=fails)
        if names := [tool.name for tool in tools if tool.input_schema.keys() & {"anyOf", "oneOf", "allOf"}]:
            yield DiagnosticStep(
                "schemas",
                "Claude's API rejects every request with these tools, because their input schemas have anyOf, oneOf, "
                f"or allOf at the root: {', '.join(names)}",
                remedy="Ask the tools' authors to list all properties at the root, or deny the tools in a policy.",
            )
        if client.transport == "stdio" and BY_DATE[client.revision].handshake:
            yield DiagnosticStep(
                "questions",
                "questions and log messages on stdio don't identify the call they belong to",
                remedy='In a gateway without sign-in, set isolation = "per_session" for it if its tools ask.',
            )
        for step in (*await check_streams(client, options.timeout), *health_steps(describe())):
            yield step
    if isinstance(place, Remote) and place.url.scheme.startswith("http"):
        headers = {**place.headers, **options.headers(target)}
        health = await read_health(place.url, headers, options.timeout)
        for step in (*health_steps(health), *await check_private_pages(place.url, options.timeout)):
            yield step
        async for step in seen_by_browsers(place.url, headers, options.timeout):
            yield step


_STORE_SECONDS = 5.0
"""Maximum seconds to wait for a connection to a store."""
_STREAM_SECONDS = 5.0
"""Seconds to wait for the first bytes of a stream."""


async def check_streams(client: Client, seconds: float) -> list[DiagnosticStep]:
    """Open an event stream, and wait for the first message on it, which a proxy may hold back.

    Servers of the handshake era send nothing on a new stream, so there's nothing to wait for.
    """
    if client.transport != "streamable-http" or BY_DATE[client.revision].handshake:
        return []
    seconds = min(seconds, _STREAM_SECONDS)
    try:
        async with asyncio.timeout(seconds), client.watch(tools=True):
            return [DiagnosticStep("streams", "the first message of an event stream arrived")]
    except TimeoutError:
        text = f"an event stream was opened, but nothing arrived within {pluralize(seconds, 'second')}"
        remedy = "If there's a proxy, turn off its buffering for this path: in nginx, proxy_buffering off."
        return [DiagnosticStep("streams", text, ok=False, remedy=remedy)]
    except ClientError:  # not every server has subscriptions
        return []


async def sign_in_steps(target: str, challenge: str) -> AsyncIterator[DiagnosticStep]:
    """Yield what a client reads before it signs in: the server's metadata (RFC 9728), and its issuer's (RFC 8414).

    Args:
        target: The server, which has no metadata if it isn't at a URL.
        challenge: Its `WWW-Authenticate` header, if there was one.
    """
    from millstream.client._oauth import endpoints  # noqa: PLC0415  most servers accept the command

    place = find_server(target, env={}, cwd=None)
    if not isinstance(place, Remote) or not place.url.scheme.startswith("http"):
        return
    name, url = "metadata", place.url
    try:
        named = endpoints.read_challenges(challenge).parameters.get("resource_metadata", "")
        resource = await endpoints.find_resource(url, named, endpoints.DIRECT)
        if resource is None:
            yield DiagnosticStep(
                name, f"{url} has none, so clients can't sign in there", remedy="Pass a key: --auth KEY"
            )
            return
        issuer = endpoints.refuse_local(resource.authorization_servers[0], url)
        yield DiagnosticStep(name, f"clients of {resource.resource or url} sign in at {issuer}")
        name = "issuer"
        found = await endpoints.find_issuer(issuer, endpoints.DIRECT)
        if found is None:
            yield DiagnosticStep(
                name, f"{issuer} has no metadata", ok=False, remedy="Check that it's the exact issuer."
            )
        else:
            yield DiagnosticStep(name, f"{issuer} issues tokens at {found.token_endpoint}")
    except ClientError as exc:
        yield DiagnosticStep(name, exc.message, ok=False, remedy=exc.remedy)


def health_steps(health: _Health) -> Iterator[DiagnosticStep]:
    """Yield what a server tells about itself and its upstreams, and why it's degraded if that doesn't say so."""
    steps = list(_gateway_steps(health))
    yield from steps
    if health.status == "degraded" and all(step.ok for step in steps):
        text = "; ".join(health.reasons) or "the server says that it's degraded, but not why"
        remedy = "" if health.reasons else "If it's a Millstream server, pass a key with the scope millstream:watch."
        yield DiagnosticStep("health", text, ok=not health.reasons, remedy=remedy)


def _gateway_steps(health: _Health) -> Iterator[DiagnosticStep]:
    if health.gateway:
        yield DiagnosticStep("gateway", f"it {health.gateway}")
    if (found := health.configuration) is not None:
        text = f"version {found.version} of {found.file} is in force, digest {found.digest}"
        if found.refused:
            text += f", but the file has changed and can't be used: {found.refused}"
        yield DiagnosticStep("configuration", text, ok=not found.refused)
    for trouble in health.troubles:
        text = f"{trouble.what}: {trouble.reason.rstrip('.')}"
        text += f"; {pluralize(trouble.count, 'failure')}" if trouble.count else ""
        text += f" since {local_time(trouble.since)}" if trouble.since else ""
        yield DiagnosticStep("trouble", text, ok=False, remedy=trouble.remedy)
    if not health.store.up and not health.troubles:
        yield DiagnosticStep("store", f"the {health.store.kind} store of this server doesn't respond", ok=False)
    yield from map(upstream_step, health.upstream_states)
    for each in health.sets:
        yield set_step(each)
    for text in health.sharing:
        yield DiagnosticStep("isolation", text)
    if names := ", ".join(health.asking_tools):
        text = (
            f"only the process that asked can continue these calls, so several processes need a shared store: {names}"
        )
        yield DiagnosticStep("questions", text)


def set_step(found: _Set) -> DiagnosticStep:
    """Return the step for a set of items with an address of its own."""
    counts = [f"{count} {kind if count != 1 else kind[:-1]}" for kind, count in found.items.items() if count]
    needed = [f"scope {each}" for each in found.scopes] + [f"group {each}" for each in found.groups]
    text, well = (
        f"{found.name} at {found.path} has {', '.join(counts) or 'no items'}",
        bool(counts) and not found.unused,
    )
    unused = "".join(f". It {each.rstrip('.')}" for each in found.unused)
    return DiagnosticStep(
        "set",
        (f"{text}, for callers with the {' and the '.join(needed)}" if needed else text) + unused,
        ok=well,
        remedy="" if well else "Compare its patterns with the names that `millstream list` prints.",
    )


_NOTHING = "Register a tool, resource, or prompt, check the patterns of a gateway's policies, or sign in."


async def count_items(client: Client, tools: int, *, is_gateway: bool, fails: bool) -> DiagnosticStep:
    """Count what a server offers this caller. A gateway may have nothing for a caller without sign-in.

    Args:
        client: The client.
        tools: Number of tools.
        is_gateway: Whether it's a gateway from a file.
        fails: Whether the gateway lacks an upstream, which another step explains.
    """
    counts = {
        "tool": tools,
        "resource": len(await list_items(client.resources)),
        "template": len(await list_items(client.templates)),
        "prompt": len(await list_items(client.prompts)),
    }
    text = ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items())
    well = any(counts.values())
    return DiagnosticStep("offers", text, ok=well or is_gateway, remedy="" if well or fails else _NOTHING)


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
        raise ConnectFailed(f"The name {url.host} couldn't be resolved within {pluralize(seconds, 'second')}.") from exc
    except OSError as exc:
        raise ConnectFailed(f"The name {url.host} can't be resolved: {os_error_text(exc)}.") from exc
    addresses = sorted({str(each[4][0]) for each in known})
    found = (
        f"{url.host} is already an address"
        if addresses == [url.host]
        else f"{url.host} resolves to {', '.join(addresses)}"
    )
    return DiagnosticStep("name", found)


async def check_certificate(url: Url, seconds: float) -> DiagnosticStep:
    """Check the certificate of a server.

    Raises:
        ConnectFailed: The server isn't responding.
        TlsFailed: The certificate isn't trusted, or the server has none.
    """
    context = ssl.create_default_context()
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(url.host, url.port, ssl=context)
    except TimeoutError as exc:
        hint = "Use http:// instead of https:// if that's intended."
        raise ConnectFailed(f"{url.origin} sent no certificate within {pluralize(seconds, 'second')}. {hint}") from exc
    except OSError as exc:
        raise connect_error(url, exc) from exc
    certificate: dict[str, Any] = writer.get_extra_info("peercert") or {}
    writer.close()
    return DiagnosticStep("certificate", f"trusted until {certificate.get('notAfter', 'an unknown date')}")


def gateway_file(target: str) -> Path | None:
    """Return the path of a gateway's configuration, or None if the target is something else.

    Raises:
        TargetError: The file can't be read.
    """
    path = Path(split_target(target)[0])
    if path.suffix not in (".toml", ".json", ".jsonc") or not path.is_file():
        return None
    return path if path.suffix == ".toml" or needs_gateway(path) else None


@asynccontextmanager
async def open_target(target: str, options: ConnectOptions) -> AsyncGenerator[tuple[Client, Callable[[], _Health]]]:
    """Connect to a server. Yields a client, and a function that returns the states of a file's upstreams and its sets.

    The gateway of a file runs in this process without its store, which a running gateway may use.

    Raises:
        ClientError: The file can't be used.
    """
    path = gateway_file(target)
    if path is None:
        async with options.client(target) as client:
            yield client, _Health
        return
    from millstream._app.gateway_server import server_of_file  # noqa: PLC0415  the other commands are clients
    from millstream._app.server_process import OWN_ERRORS  # noqa: PLC0415

    async with AsyncExitStack() as stack:
        try:
            server = server_of_file(path, split_target(target)[1])
            troubles = await find_store_trouble(server.definition.store, min(options.timeout, _STORE_SECONDS))
            server.definition.store = "memory://"
            runtime = await stack.enter_async_context(server.running())
        except OWN_ERRORS as exc:
            raise ClientError(str(exc)) from exc
        connecting = Client(server, revision=options.revision or None, timeout=options.timeout)
        client = await stack.enter_async_context(connecting)
        await wait_for_upstreams(client, options.timeout)
        reports, sets = runtime.host.gateway, runtime.host.reports.get("sets", list)

        def describe() -> _Health:
            states = [] if reports is None else reports.describe_states()
            listed = msgspec.convert(sets(), list[_Set])
            return _Health(troubles=troubles, sets=listed, upstream_states=read_states(states))

        yield client, describe


async def find_store_trouble(url: str, seconds: float) -> list[Trouble]:
    """Return why a store on the network can't be reached. It isn't opened, because that may write to it."""
    found = urlsplit(url)
    ports = {"nats": 4222, "redis": 26379 if "+sentinel" in found.scheme else 6379}
    default = next((port for kind, port in ports.items() if found.scheme.startswith(kind)), 0)
    if "@" in found.path + found.query + found.fragment:  # a password that isn't escaped, and looks like a host
        return []
    reasons: list[str] = []
    for place in found.netloc.rpartition("@")[2].split(",") if default else ():
        host = parse_authority(place.encode())
        if host is None:
            continue
        try:
            async with asyncio.timeout(seconds):
                _, writer = await asyncio.open_connection(host.name.strip("[]"), int(host.port or default))
        except TimeoutError:
            reasons.append(f"{place} didn't respond within {pluralize(seconds, 'second')}")
        except OSError as exc:
            reasons.append(f"{place}: {os_error_text(exc)}")
        else:
            writer.close()
            return []
    remedy = "Start it, or correct the URL."
    return [Trouble("the store can't be reached", 0, 0, "; ".join(reasons), remedy)] if reasons else []


def read_states(found: list[dict[str, Any]]) -> list[UpstreamState]:
    """Decode the states of a gateway's upstreams."""
    return msgspec.convert(found, list[UpstreamState])


def upstream_step(upstream: UpstreamState) -> DiagnosticStep:
    """Return the state of a gateway's upstream."""
    well = upstream.state == "ready" or (upstream.accounts and upstream.state == "connecting")
    facts = [upstream.state + (f" since {local_time(upstream.since)}" if upstream.since else "")]
    facts += _count_workers(upstream)
    if upstream.reason:
        facts.append(upstream.reason.rstrip("."))
    if upstream.failed_reads:
        facts.append(f"{upstream.failed_reads} failed attempt{'s' * (upstream.failed_reads > 1)} to read its lists")
    if upstream.revision and upstream.transport != "openapi":
        facts.append(f"revision {upstream.revision}")
    if upstream.transport:
        facts.append(f"over {upstream.transport}" if upstream.transport != "openapi" else "an API")
    facts.append(f"lists read at {local_time(upstream.listed_at)}" if upstream.listed_at else "no lists yet")
    if upstream.quarantined:
        items = pluralize(upstream.quarantined, "item")
        facts.append(f"{items} quarantined until somebody accepts them: millstream gateway accept FILE {upstream.name}")
    if upstream.account:
        facts.append(f"account: {upstream.account}")
    if upstream.last_error is not None:
        facts.append(f"last error at {local_time(upstream.last_error.at)}: {upstream.last_error.text}")
    return DiagnosticStep(f"upstream {upstream.name}", "; ".join(facts), ok=well)


def _count_workers(upstream: UpstreamState) -> Iterator[str]:
    """Yield how many workers see the state, and how many didn't respond."""
    count, same = sum(upstream.workers.values()), upstream.workers.get(upstream.state, 0)
    silent = upstream.workers.get("silent", 0)
    if count > 1:
        yield f"on {same} of {count} workers"
    if silent:
        yield f"{silent} of them didn't respond"


async def read_health(url: Url, headers: Mapping[str, str], seconds: float) -> _Health:
    """Return what a gateway of ours tells about itself, which depends on the credentials."""
    for reference in ("health", "../health", "/health"):  # the URL may be that of a set
        with suppress(ClientError, TimeoutError, msgspec.DecodeError):
            reply = await request("GET", url.join(reference), headers, max_body=1 << 20, seconds=seconds)
            if reply.status != 404:
                return msgspec.json.decode(reply.body, type=_Health)
    return _Health()


async def check_private_pages(url: Url, seconds: float) -> list[DiagnosticStep]:
    """Check that a server at a public name doesn't mistake callers for programs on its own machine.

    It names its store only to these, and to callers who sign in.
    """
    host = parse_authority(url.authority.encode())
    if host is None or host.loopback:
        return []
    health = await read_health(url, {}, seconds)
    if not (health.store.kind and "mcp" in health.features):
        return []
    found = (
        "the dashboard, /publish, and /metrics are open to everybody, because a proxy hides where requests come from"
    )
    remedy = "Turn on sign-in, or let the proxy block these pages, or send X-Forwarded-For."
    return [DiagnosticStep("private pages", found, ok=False, remedy=remedy)]


async def seen_by_browsers(url: Url, headers: Mapping[str, str], seconds: float) -> AsyncIterator[DiagnosticStep]:
    """Check CORS for browsers, and report proxies, which may compress or buffer."""
    pool = ConnectionPool(url, max_connections=2, max_body=1 << 20, connect_timeout=seconds, tls=None)
    endpoint = Endpoint(url, headers, pool)
    ask = {"Origin": "https://example.com", "Access-Control-Request-Method": "POST"}
    try:
        async with asyncio.timeout(seconds):
            reply = await endpoint.send("OPTIONS", ask, repeatable=True)
        allowed = reply.header(b"access-control-allow-origin")
        text = f"pages from {allowed} can use it" if allowed else "pages from other origins can't use it, which is safe"
        yield DiagnosticStep("browsers", text)
        proxies = [name for name in (b"via", b"x-cache", b"cf-ray", b"x-served-by") if name in reply.headers]
        if proxies:
            shown = ", ".join(name.decode() for name in proxies)
            remedy = "Turn off buffering and compression for event streams: in nginx, proxy_buffering off."
            yield DiagnosticStep("proxy", f"there is one ({shown})", remedy=remedy)
    except (ClientError, TimeoutError) as exc:
        how = "get no answer" if isinstance(exc, TimeoutError | ConnectFailed | ConnectionLost) else "are refused"
        yield DiagnosticStep("browsers", f"preflight requests {how}: pages from other origins can't use it")
    finally:
        await pool.close()


def remedy_of(error: ClientError) -> str:
    """Return the remedy of an error, or the usual one for its type."""
    if isinstance(error, NotMcp | TlsFailed) and error.remedy:
        return explain(error)[2]
    if isinstance(error, ConnectFailed):
        return "Check the host and port, and that the server is running. A server on 127.0.0.1 is local only."
    if isinstance(error, AccessDenied):
        return _clock_remedy(error.reply) or "Sign in with --login, or send a valid key: --auth KEY."
    return "Check the path: most servers are at /mcp, old ones at /sse." if isinstance(error, NotMcp) else ""


_MAX_CLOCK_ERROR = 60
"""Maximum seconds between two clocks by which a valid token isn't rejected."""


def _clock_remedy(reply: object) -> str:
    """Return a remedy if the server's clock and this machine's differ, or an empty string."""
    sent = parsedate_tz(reply.header(b"date")) if isinstance(reply, HttpReply) else None
    ahead = round(mktime_tz(sent) - time.time()) if sent else 0
    if abs(ahead) <= _MAX_CLOCK_ERROR:
        return ""
    return (
        f"The server's clock is {pluralize(abs(ahead), 'second')} {'ahead of' if ahead > 0 else 'behind'} this "
        "machine's, and tokens are only valid for a time. Correct the clocks."
    )


_CHARACTERS = 4


def cost(tool: ToolDescription) -> int:
    """Estimate how many tokens a tool takes in a model's context.

    A token is estimated as four characters of the JSON that a model receives (name, description, and input schema).
    Tokenizers differ by up to a third for such text, so the figures are for comparing tools.
    """
    shown = {"name": tool.name, "description": tool.description or "", "input_schema": tool.input_schema}
    return -(-len(msgspec.json.encode(shown).decode()) // _CHARACTERS)


async def tokens(target: Target, /, *, options: ConnectOptions = DEFAULTS, json: Json = False) -> None:
    """Show the cost of a server's tools in tokens, the most expensive first.

    The estimate is one token for four characters of names, descriptions, schemas, and instructions. The last row is the
    cost with tool search (MILLSTREAM_TOOL_SEARCH=true).

    **Example**

    - `millstream tokens shop.py`
    """
    async with options.client(target) as client:
        await wait_for_upstreams(client, options.timeout)
        from millstream._gateway.catalog.search import (  # noqa: PLC0415  other commands do without a gateway
            CALL,
            CALL_DESCRIPTION,
            SEARCH,
            SEARCH_DESCRIPTION,
        )

        costs = sorted(((cost(tool), tool.name) for tool in await client.tools()), reverse=True)
        instructions = -(-len(client.instructions) // _CHARACTERS)
        total = sum(each for each, _ in costs) + instructions
        both = ({"name": SEARCH, **SEARCH_DESCRIPTION}, {"name": CALL, **CALL_DESCRIPTION})
        searched = instructions + sum(map(cost, msgspec.convert(both, list[ToolDescription])))
        if json:
            tools = [{"name": name, "tokens": each} for each, name in costs]
            print_json({"tools": tools, "instructions": instructions, "total": total, "with_search": searched})
            return
        shown = [*costs, (instructions, "(instructions)"), (total, "(all)")]
        if SEARCH not in {name for _, name in costs}:
            shown.append((searched, "(all, with tool search)"))
        rows = [[f"{each:,}", f"{100 * each / (total or 1):.0f}%", name] for each, name in shown]
        print_rows(rows, ["TOKENS", "SHARE", "TOOL"])


_SHOWN_AS_CHANGES = "list_changed", "resources/updated", "subscriptions/acknowledged"


WatchLevel = StrEnum("WatchLevel", "debug info notice warning error critical alert emergency")


async def watch(
    target: Target,
    /,
    *uris: Annotated[str, Parameter(name="URI")],
    count: Annotated[int, Parameter(alias="-c", validator=Number(gte=0))] = 0,
    level: WatchLevel = WatchLevel.info,
    options: ConnectOptions = DEFAULTS,
    json: Json = False,
) -> None:
    """Print a server's changes and log messages, until Ctrl-C.

    Changes to the server's lists are always shown. `again` means that the connection was lost and restored, so changes
    may have been missed. With --json, each line is one object.

    **Examples**

    - `millstream watch http://127.0.0.1:8000/mcp`

    - `millstream watch http://127.0.0.1:8000/mcp shop://news --count 1`: wait for one change

    Args:
        uris: Resources to watch.
        count: Stop after this many changes, or 0 for no limit.
        level: Minimum severity of log messages.
    """

    with suppress(asyncio.CancelledError):
        async with options.client(target, log_level=level) as client:
            for uri in uris:
                await check_resource(client, uri)  # fail early, because a missing resource would never change
            with stop_without_reader() as wrap:
                client.conversation.requests.incoming.observer = wrap(partial(show_notification, as_json=json))
                async with client.watch(*uris, tools=True, prompts=True, resources=True) as changes:
                    if not json:
                        name = one_line(client.server.name) or target
                        print_text(f"Watching {name} ({client.revision}, {client.transport}).")
                    seen = 0
                    async for change in changes:
                        if json:
                            print_json({"change": change.kind, **({"uri": change.uri} if change.uri else {})})
                        else:
                            print_text(f"changed\t{change.kind}\t{one_line(change.uri)}".rstrip())
                        seen += 1
                        if seen == count:
                            return


def show_notification(notification: Notification, *, as_json: bool) -> None:
    """Print one line for a notification that isn't a change."""
    if notification.method.endswith(_SHOWN_AS_CHANGES):
        return
    try:
        params = msgspec.json.decode(notification.params)
    except (ValueError, RecursionError):
        return  # the message can't be decoded
    if as_json:
        print_json({"method": notification.method, "params": params})
    elif notification.method == "notifications/message":
        print_text(f"log\t{one_line(str(params.get('level')))}\t{one_line(str(params.get('data')))}")
    else:
        print_text(f"{one_line(notification.method.removeprefix('notifications/'))}\t{one_line(str(params))}")
