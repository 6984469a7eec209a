"""An endpoint for signed webhooks: ``WEBHOOK_SECRET=whsec_… uvicorn webhook_receiver:app``, behind https."""

import os

from standardwebhooks import Webhook, WebhookVerificationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

webhook = Webhook(os.environ["WEBHOOK_SECRET"])


async def receive(request: Request) -> Response:
    """Agree to a challenge, and print other messages."""
    try:
        message = webhook.verify(await request.body(), dict(request.headers))
    except (WebhookVerificationError, ValueError):  # ValueError: the signature or the text is malformed
        return Response(status_code=401)
    if message.get("type") == "verification":
        return JSONResponse({"challenge": message["challenge"]})
    print(message, flush=True)
    return Response(status_code=204)


app = Starlette(routes=[Route("/hook", receive, methods=["POST"])])
