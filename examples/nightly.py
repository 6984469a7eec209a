"""A job that orders books every night: it acts for itself, without a person, and signs for who it is."""

from pathlib import Path

from millstream import Client, auth
from millstream.auth.providers import OAuthClient
from millstream.client import MemoryTokenStore, OAuth, Options


# region: client
def nightly(public_key: Path) -> OAuthClient:
    """What the server knows of the job: its name, its public key, and what it may do."""
    return auth.client("nightly", jwks=public_key.read_text(), scopes=["orders:write"])


# endregion


# region: job
async def order(server: str, private_key: Path) -> str:
    """What the job does."""
    me = OAuth(store=MemoryTokenStore(), client_id="nightly", client_credentials=True).with_private_key(private_key)
    async with Client(server, options=Options(auth=me)) as client:
        return (await client.call("order", isbn="9780261103573")).text


# endregion
