"""What you subclass or write to decide yourself about sign-in: ``auth.issuer(…, provider=Mine())`` and ``users=``."""

from millstream.auth._issuing.provider import Provider, Refused
from millstream.auth._issuing.records import Client
from millstream.auth._issuing.ways import Away, Returned, SignInFailed, Upstream, User, Way

__all__ = ["Away", "Client", "Provider", "Refused", "Returned", "SignInFailed", "Upstream", "User", "Way"]
