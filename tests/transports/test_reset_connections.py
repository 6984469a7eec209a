import asyncio
import socket
import struct

from cases import for_each
from http_messages import HttpRequest, Response
from http_peer import ToyApp, request, serve
from millstream import Settings
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
