"""The caller's identity, and the small seams that upper layers fill in."""

from typing import Any, Protocol

from msgspec import Struct


class Principal(Struct, frozen=True):
    """An authenticated caller. `id` is unique for issuer and subject together."""

    id: str
    scopes: frozenset[str] = frozenset()
    claims: dict[str, Any] = {}


class Refusal(Struct, frozen=True):
    """A gate's answer to a call that it does not let through."""

    code: int
    message: str
    data: Any = None
    status: int = 200


class CallPolicy(Protocol):
    """Scopes and limits: asked once for each request; `None` lets it pass."""

    def __call__(self, principal: Principal | None, method: str, name: str) -> Refusal | None: ...


class Publisher(Protocol):
    """The hub as tools see it (``ctx.hub``)."""

    async def publish(self, channel: str, data: Any, *, event: str | None = None, id: str | None = None) -> Any: ...
