"""A FastAPI application with two servers: /echo/mcp and /math/mcp. In this folder,
``pip install -r requirements.txt``, then ``uvicorn main:app``.

Sessions are there for clients that want them. ``MILLSTREAM_SESSIONS=false`` serves every request on its own, and
``MILLSTREAM_JSON_ONLY=true`` answers without event streams.
"""

from fastapi import FastAPI
from servers import echo, math

app = FastAPI()
app.mount("/echo", echo.mcp)
app.mount("/math", math.mcp)
