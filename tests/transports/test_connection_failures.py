import asyncio

import pytest

from cases import for_each
from http_messages import HttpRequest, Response
from http_peer import WAIT, ToyApp, request, serve
from millstream import Settings


class Force(BaseException):
    """No `Exception`: no handler may answer for it."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@for_each("raised", [Force, asyncio.CancelledError])
@for_each("turns", [0, 1])
async def test_forcibly_ended_call_closes_its_connection(raised: type[BaseException], turns: int) -> None:

    async def fails(_request: HttpRequest) -> Response:
        for _ in range(turns):
            await asyncio.sleep(0)
        raise raised

    async def works(_request: HttpRequest) -> Response:
        return Response(b"ok")

    app = ToyApp({("POST", "/echo"): fails, ("POST", "/works"): works}, Settings())
    async with serve(app, lane=True) as running:
        for _ in range(2):  # the second call of a server meets what the first left
            peer = await running.connect()
            await peer.send(request(path="/works"))
            assert (await peer.reply())[0] == 200
            await peer.send(request())
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await asyncio.wait_for(peer.reader.readexactly(1), WAIT)
            await running.wait_for_connections(0)
        assert not running.state.tasks
