import asyncio
import datetime as dt
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cases import for_each
from guard_peer import echo, make_endpoints
from http_peer import request, serve
from millstream import Client
from millstream._app.server_process import CommandError, listen_sockets
from millstream._app.server_process.listen_sockets import Certificate
from millstream._config import Settings
from millstream._protocol.errors import LocalError
from millstream._troubles import Troubles
from millstream.client import Options, TlsFailed
from patience import WAIT
from processes import free_port, run_command, run_server
from workers_world import PROGRAM, kill, run_workers, until, until_async

ASYNCIOS = 60.0
"""Default timeout of a TLS handshake in asyncio."""
SLOW_TO_START = """
while (HERE / "held").exists():
    import time
    (HERE / "starting").touch()
    time.sleep(0.02)
"""


def make(
    folder: Path, name: str, *, passphrase: bytes = b"", begins: float = 0.0, ends: float = 30.0
) -> tuple[str, str]:
    """Create a self-signed certificate for localhost, valid between these days from now, and its key; return their
    paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    begin, end = now + dt.timedelta(begins), now + dt.timedelta(ends)
    cert = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    kept = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, kept)
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(pem)
    return str(paths[0]), str(paths[1])


@contextmanager
def shop(folder: Path, *options: str, **environment: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run a program that serves https; yield its port and process."""
    cert, key = make(folder, "x")
    (folder / "shop.py").write_text(PROGRAM)
    port = free_port()
    command = run_command(str(folder / "shop.py"), port, "--tls-cert", cert, "--tls-key", key, *options)
    with run_server(command, port, folder / "log", **environment) as process:
        yield port, process


def secured(port: int) -> ssl.SSLSocket:
    """Connect to a server without checking its certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    plain = socket.create_connection(("127.0.0.1", port), timeout=WAIT)
    return context.wrap_socket(plain, server_hostname="localhost")


def shown(port: int) -> tuple[str, str, bytes]:
    """Return the name in a server's certificate, the TLS version, and the response to a probe."""
    with secured(port) as secure:
        secure.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b""
        while data := secure.recv(4096):
            answer += data
        raw = secure.getpeercert(binary_form=True)
        assert raw is not None
        (name,) = x509.load_der_x509_certificate(raw).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(name.value), secure.version() or "", answer


@pytest.mark.server
def test_renewed_certificates_are_loaded_without_a_restart(tmp_path: Path) -> None:
    cert, key = make(tmp_path, "old")
    port = free_port()
    command = run_command("examples/greet.py", port, "--tls-cert", cert, "--tls-key", key)
    with run_server(command, port, tmp_path / "log"):
        name, version, answer = shown(port)
        assert (name, version) == ("old", "TLSv1.3")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        make(tmp_path, "new")
        deadline = time.monotonic() + WAIT
        while shown(port)[0] != "new":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert f"https://127.0.0.1:{port}/mcp" in (tmp_path / "log").read_text("utf-8")


@pytest.mark.server
@pytest.mark.skipif(os.name != "posix", reason="one process serves where sockets cannot be handed on")
def test_takeover_sockets_use_https(tmp_path: Path) -> None:
    cert, key = make(tmp_path, "x")
    options = ("--tls-cert", cert, "--tls-key", key)
    with run_workers(tmp_path, 2, *options, program=PROGRAM + SLOW_TO_START) as served:
        (tmp_path / "held").touch()
        kill(served.pids[1])
        until((tmp_path / "starting").exists)
        assert all(shown(served.port)[2].startswith(b"HTTP/1.1 200 OK\r\n") for _ in range(30))
        (tmp_path / "held").unlink()
        served.wait_for_line("is ready")


@pytest.mark.server
@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["alone", "with workers"])
def test_missing_tls_handshake_times_out(tmp_path: Path, workers: tuple[str, ...]) -> None:
    with shop(tmp_path, *workers, MILLSTREAM_HEADER_TIMEOUT="1") as (port, _):
        begun = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as silent:
            assert silent.recv(1) == b""
        assert time.monotonic() - begun < ASYNCIOS


@pytest.mark.server
@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["alone", "with workers"])
def test_shutdown_does_not_wait_for_tls_close(tmp_path: Path, workers: tuple[str, ...]) -> None:
    with shop(tmp_path, *workers) as (port, process), secured(port) as idle:
        idle.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
        process.terminate()
        assert process.wait(WAIT) == 0
    log = (tmp_path / "log").read_text("utf-8")
    assert "Stopping" in log
    assert "Cancel" not in log


def test_partial_certificate_renewal_is_not_loaded(tmp_path: Path) -> None:
    cert, key = make(tmp_path, "old")
    certificate = Certificate(cert, key)
    assert not certificate.renew()
    old_key = Path(key).read_bytes()
    make(tmp_path, "new")
    new_key = Path(key).read_bytes()
    Path(key).write_bytes(old_key)
    assert not certificate.renew()
    Path(key).write_bytes(b"not a key")
    assert not certificate.renew()
    Path(key).unlink()
    assert not certificate.renew()
    Path(key).write_bytes(new_key)
    assert certificate.renew()
    assert not certificate.renew()


@for_each("broken", ["key", "certificate"])
def test_pairs_that_stay_unusable_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    cert, key = make(tmp_path, "old")
    certificate, now = Certificate(cert, key), [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    Path(key if broken == "key" else cert).write_text("nothing")
    assert not certificate.renew()
    now[0] = 1059.9
    assert not certificate.renew()
    now[0] = 1060.0
    with pytest.raises(LocalError, match=r"can't be used: .*The old ones still serve\."):
        certificate.renew()
    make(tmp_path, "new")
    assert certificate.renew()


@for_each(
    ("begins", "ends", "says"),
    [
        *((-9, -1, "expired on"), (-60, 13.9, "expires on"), (-60, 14.1, ""), (1, 30, "is valid from"), (-1, 90, "")),
        *((0, 6, ""), (-5, 1, "expires on")),
    ],
)
async def test_invalid_dates_of_the_certificate_are_a_trouble_until_it_is_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: float, ends: float, says: str
) -> None:
    monkeypatch.setattr(listen_sockets, "EVERY", 0.0)
    cert, key = make(tmp_path, "first", begins=begins, ends=ends)
    certificate, table = Certificate(cert, key), Troubles()
    watching = asyncio.create_task(certificate.watch(table))
    await asyncio.sleep(0)
    assert [says in each.reason for each in table.describe()] == ([True] if says else [])
    make(tmp_path, "second", ends=90)
    await until_async(lambda: not table.describe())
    watching.cancel()


async def test_unusable_renewal_is_a_trouble_until_the_pair_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen_sockets, "EVERY", 0.0)
    monkeypatch.setattr(listen_sockets, "_PATIENCE", 0.0)
    cert, key = make(tmp_path, "old", ends=90)
    certificate, table = Certificate(cert, key), Troubles()
    watching = asyncio.create_task(certificate.watch(table))
    await asyncio.sleep(0)
    assert not table.describe()
    await asyncio.to_thread(Path(key).write_text, "nothing")
    await until_async(lambda: bool(table.describe()))
    (found,) = table.describe()
    assert "The old ones still serve" in found.reason
    assert "both files" in found.remedy
    make(tmp_path, "new", ends=90)
    await until_async(lambda: not table.describe())
    watching.cancel()


def test_clients_of_an_expired_certificate_are_told_that_it_must_be_renewed(tmp_path: Path) -> None:
    cert, key = make(tmp_path, "old", begins=-9, ends=-1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    async def connect() -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
        async with server:
            url = f"https://localhost:{server.sockets[0].getsockname()[1]}/mcp"
            trusting = Options(tls=ssl.create_default_context(cafile=cert))
            with pytest.raises(TlsFailed, match=r"certificate has expired.*has to renew it"):
                async with Client(url, options=trusting):
                    pass

    asyncio.run(connect())


def test_old_tls_versions_are_rejected(tmp_path: Path) -> None:
    assert Certificate(*make(tmp_path, "x")).context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_invalid_certificates_prevent_startup(tmp_path: Path) -> None:
    cert, key = make(tmp_path, "x")
    other = tmp_path / "other"
    other.mkdir()
    stranger = make(other, "y")[1]
    for pair in ((cert, stranger), (cert, str(tmp_path / "none")), (key, cert), (cert, "")):
        with pytest.raises(CommandError, match="certificate"):
            Certificate(*pair)
    cert, key = make(tmp_path, "x", passphrase=b"secret")
    with pytest.raises(CommandError) as refused:
        Certificate(cert, key)
    assert "passphrase" in refused.value.why


async def test_peers_that_do_not_close_tls_are_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = make_endpoints({("POST", "/echo"): echo}, Settings(keep_alive=0.1))
    async with serve(app, lane=True, tls=Certificate(*make(tmp_path, "x")).context) as server:
        peer = await asyncio.to_thread(secured, server.port)
        await asyncio.to_thread(peer.sendall, request(body=b"x"))
        assert (await asyncio.to_thread(peer.recv, 4096)).startswith(b"HTTP/1.1 200 OK\r\n")
        await server.wait_for_connections(0)
        assert not caplog.records, caplog.text
        peer.close()


async def test_shutdown_ignores_closed_tls_connections(tmp_path: Path) -> None:
    app = make_endpoints({("POST", "/echo"): echo}, Settings())
    async with serve(app, lane=True, tls=Certificate(*make(tmp_path, "x")).context) as server:
        peer = await asyncio.to_thread(secured, server.port)
        await asyncio.to_thread(peer.sendall, request(body=b"x", extra=b"Connection: close\r\n"))
        assert (await asyncio.to_thread(peer.recv, 4096)).startswith(b"HTTP/1.1 200 OK\r\n")
        connections: set[Any] = server.state.connections
        (connection,) = connections
        connection.shutdown()
        server.guard._sweep()
        peer.close()
