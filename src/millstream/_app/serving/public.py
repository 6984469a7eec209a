"""An address that others reach is served only with a way to sign in, or because somebody has said so."""

from millstream._app.definition import Definition
from millstream._app.serving.errors import CommandError
from millstream._http.hosts import is_loopback

SHORTEST_KEY = 16
"""Characters of a key that can't be guessed from far away."""


def check_public(definition: Definition, host: str) -> None:
    """See that not everybody may do everything, unless somebody has said so.

    Raises:
        CommandError: others reach the address, and nobody has to sign in, or the key is one that can be guessed.
    """
    settings = definition.settings
    if is_loopback(host) or settings.public_without_auth:
        return
    if not definition.protected:
        raise CommandError(
            f"{host} is an address that others reach, and nobody would have to sign in.",
            why="Everybody who reaches it could call every tool.",
            fix="Set MILLSTREAM_AUTH_KEY, add --auth-keys FILE, or write auth= in the program. If you want it open, "
            "add --public-without-auth.",
        )
    if settings.auth_key and len(settings.auth_key) < SHORTEST_KEY:
        raise CommandError(
            "The auth key is too short for an address that others reach.",
            why=f"It has {len(settings.auth_key)} characters, and one with fewer than {SHORTEST_KEY} can be guessed.",
            fix='Make one: python -c "import secrets; print(secrets.token_urlsafe(32))"',
        )
