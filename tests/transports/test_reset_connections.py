import asyncio
import socket
import struct

import pytest

from cases import for_each
from http_messages import HttpRequest, Response
from http_peer import STREAM_HEAD, SocketListener, ToyApp, make_listener, request, serve
from millstream import Server, Settings
from patience import WAIT
from socket_world import TRANSPORTS, UPGRADE, world


def send_and_reset(port: int, data: bytes) -> None:
    """Be gone before the server's loop has a turn. What was sent can still be read."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(data)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@for_each("way", TRANSPORTS)
async def test_reset_connections_do_not_bypass_limits(way: str) -> None:
    owners: list[str] = []

    async def note(request: HttpRequest) -> Response:
        owners.append(request.owner)
        return Response()

    app = ToyApp({("POST", "/echo"): note}, Settings())
    async with serve(app, lane=way == "lane") as running:
        for _ in range(5):
            send_and_reset(running.port, request())
        peer = await running.connect(request())
        assert (await peer.reply())[0] == 200
        # Our own server knows the address since it accepted the connection.
        assert set(owners) == {"127.0.0.1"} if way == "lane" else owners == ["reset"] * 5 + ["127.0.0.1"]
        peer.close()
        await asyncio.wait_for(running.state.connections.shrink(0), WAIT)  # type: ignore[attr-defined]


@for_each("way", TRANSPORTS)
async def test_reset_handshakes_do_not_bypass_limits(way: str) -> None:
    peers: list[str] = []

    async def note(request: HttpRequest) -> None:
        peers.append(request.peer)

    async with world(way, guard=note) as app:
        head = b"GET /ws HTTP/1.1\r\n%bSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" % UPGRADE
        send_and_reset(app.running.port, head)
        await app.raw()
        assert set(peers) == {"127.0.0.1"} if way == "lane" else peers == ["reset", "127.0.0.1"]


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux has this option")
async def test_connections_whose_network_is_gone_are_ended_by_the_kernel() -> None:
    """Accepted sockets inherit these options (RFC 5482, tcp(7))."""
    mcp = Server("shop", settings=Settings(write_timeout=17))
    async with mcp.running():
        listener = await make_listener(mcp)
        sock = socket.create_server(("127.0.0.1", 0))
        server = await listener.listen(sock)
        options = socket.TCP_USER_TIMEOUT, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL
        assert [sock.getsockopt(socket.IPPROTO_TCP, each) for each in options] == [17_000, 17, 10]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        server.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="not every system has this option")
async def test_kernel_keeps_little_for_a_peer_that_does_not_read() -> None:
    """Linux would take 4 MB from each, which no limit of the server counts."""
    taken: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def pour(request: HttpRequest) -> None:
        sink, written = request.open(200, STREAM_HEAD), 0
        while not (sink.buffered or sink.closed):
            sink.write(b"x" * 50_000)
            written += 50_000
            await asyncio.sleep(0)
        taken.set_result(written)

    listener = SocketListener(ToyApp({("POST", "/pour"): pour}, Settings()).table)
    sock = socket.create_server(("127.0.0.1", 0))
    server = await listener.listen(sock)
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(sock.getsockname())
        peer.sendall(request(path="/pour"))
        assert await asyncio.wait_for(taken, WAIT) < 1_000_000
    server.close()
