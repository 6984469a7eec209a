"""What a program says about signing in, as one of our ways to sign in."""

import os
from typing import TYPE_CHECKING, Any

from millstream.compat.fastmcp._sign_in import ProviderTokenVerifier, VerifierMethod

if TYPE_CHECKING:
    from millstream.compat.fastmcp._issuing import ServedProvider


_BY_ENVIRONMENT = "FASTMCP_SERVER_AUTH"
"""Where the other library reads a way to sign in from."""


def method_of(auth: Any, verifier: Any, provider: Any) -> "VerifierMethod | ServedProvider | None":
    """The way to sign in that a server was configured with; None for none.

    Raises:
        ValueError: half of it is missing, or the issuer can't be one.
        ImportError: a provider issues tokens, and the extra ``auth`` is not installed.
    """
    if auth is not None and hasattr(auth, "verify_token"):  # a provider of fastmcp
        return VerifierMethod(auth, auth if hasattr(auth, "issuer_url") else None)
    if auth is None:
        if verifier is not None or provider is not None:
            raise ValueError("Cannot specify auth_server_provider or token_verifier without auth settings")
        if os.environ.get(_BY_ENVIRONMENT):
            raise ValueError(
                f"{_BY_ENVIRONMENT} is set, and sign-in by the environment isn't supported here: without it everybody "
                "would get in. Pass auth=… to the server, or unset the variable."
            )
        return None
    if verifier is not None and provider is not None:
        raise ValueError("Cannot specify both auth_server_provider and token_verifier")
    if verifier is None and provider is None:
        raise ValueError("Must specify either auth_server_provider or token_verifier when auth is enabled")
    if verifier is not None:
        return VerifierMethod(verifier, auth)
    if not hasattr(provider, "authorize"):
        return VerifierMethod(ProviderTokenVerifier(provider), auth)
    try:
        from millstream.compat.fastmcp._issuing import ServedProvider  # noqa: PLC0415  only where tokens are issued
    except ModuleNotFoundError as error:
        raise ImportError("auth_server_provider needs the extra auth: pip install 'millstream[auth]'") from error
    return ServedProvider(provider, auth)
