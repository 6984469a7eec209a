"""An endpoint for signed webhooks: ``WEBHOOK_SECRET=whsec_… uvicorn webhook_receiver:app``, behind https."""

import base64
import hmac
import json
import os
import time
from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

KEY = base64.b64decode(os.environ["WEBHOOK_SECRET"].removeprefix("whsec_"))


def is_signed(headers: Mapping[str, str], body: bytes) -> bool:
    """Return whether one of the signatures is right, and less than five minutes old."""
    id, sent = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    digest = hmac.digest(KEY, f"{id}.{sent}.".encode() + body, "sha256")
    expected = b"v1," + base64.b64encode(digest)
    signatures = headers.get("webhook-signature", "").encode().split()
    return any(hmac.compare_digest(expected, each) for each in signatures) and abs(time.time() - int(sent)) < 300


async def receive(request: Request) -> Response:
    """Agree to a challenge, and print other messages."""
    body = await request.body()
    if not is_signed(request.headers, body):
        return Response(status_code=401)
    message = json.loads(body)
    if message.get("type") == "verification":
        return JSONResponse({"challenge": message["challenge"]})
    print(message, flush=True)
    return Response(status_code=204)


app = Starlette(routes=[Route("/hook", receive, methods=["POST"])])
