"""A webhook: the bank reports a payment, and subscribers of the channel receive it."""

import hashlib
import hmac
import json
import os

from starlette.requests import Request
from starlette.responses import Response

from millstream import Server

mcp = Server("payments", serve="hub")
SECRET = os.environ["BANK_SECRET"].encode()


@mcp.route("/paid", methods=["POST"], public=True)
async def paid(request: Request) -> Response:
    """Take the bank's message if its signature is right, and publish it."""
    body = await request.body()
    signature = hmac.new(SECRET, body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(signature, request.headers.get("x-signature", "")):
        return Response(status_code=403)
    payment = json.loads(body)
    await mcp.hub.publish("payments", {"order": payment["order"], "total": payment["total"]})
    return Response(status_code=204)


@mcp.tool
async def last_payments(count: int = 10) -> list[str]:
    """Return the newest payments."""
    return [(event.data or b"").decode() for event in await mcp.hub.history("payments", count)]


if __name__ == "__main__":
    mcp.run()
