"""Protection of public addresses: they require sign-in, or an explicit exception."""

from millstream._app.definition import Definition
from millstream._app.server_process.errors import CommandError
from millstream._http.hosts import is_loopback
from millstream.auth._key_file import SHORTEST_KEY, is_path


def check_public(definition: Definition, host: str) -> None:
    """Check that a public address is protected, unless the operator has allowed otherwise.

    Raises:
        CommandError: the address is public, and there's no sign-in or a guessable key; or the key is a path.
    """
    settings = definition.settings
    if is_path(settings.auth_key):
        raise CommandError("The auth key is the path of a file.", fix="To accept the keys in it, add --auth-keys FILE.")
    if is_loopback(host) or settings.public_without_auth:
        return
    if not definition.protected:
        raise CommandError(
            f"{host} is reachable from other machines, and callers don't have to sign in.",
            why="Anyone who reaches it could call every tool.",
            fix=(
                "Set MILLSTREAM_AUTH_KEY, add --auth-keys FILE, or write auth= in the program. If it should be "
                "open, add --public-without-auth."
            ),
        )
    if settings.auth_key and len(settings.auth_key) < SHORTEST_KEY:
        raise CommandError(
            "The auth key is too short for an address that is reachable from other machines.",
            why=(
                f"It has {len(settings.auth_key)} characters. Keys of fewer than {SHORTEST_KEY} characters can be "
                "guessed."
            ),
            fix='Create one: python -c "import secrets; print(secrets.token_urlsafe(32))"',
        )
