"""What is known of credentials. To look one up costs what a dictionary costs; all the work is done when one is kept.

A principal with many valid credentials can fill the memory. From then on, it makes room by its own. Those of others
would else be looked into again with each request: that takes a signature check, or a question to the issuer, and a turn
behind whoever guesses from the same address.
"""

from typing import NamedTuple

from millstream._protocol.principal import Principal

_MAX = 4096
_SHARE = 256
"""Of one principal, where there's no room. As long as there is, they may have any number."""


class Verdict(NamedTuple):
    """What is known of a credential, and until when."""

    principal: Principal
    until: float


class Verdicts(dict[bytes, Verdict]):
    """Value of ``Authorization``, as it's usually spelled -> verdict, in the order of keeping."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[str, dict[bytes, None]] = {}
        """`Principal.id` -> what is kept of theirs, in the same order."""

    def keep(self, value: bytes, verdict: Verdict) -> None:
        """Remember what was found out. The oldest make room: of this principal, if they have their share or more."""
        if value in self:
            del self[value]
        id = verdict.principal.id
        while len(self) >= _MAX:
            mine = self._held.get(id, {})
            del self[next(iter(mine if len(mine) >= _SHARE else self))]
        self[value] = verdict
        self._held.setdefault(id, {})[value] = None

    def __delitem__(self, value: bytes) -> None:
        id = self[value].principal.id
        super().__delitem__(value)
        mine = self._held[id]
        del mine[value]
        if not mine:
            del self._held[id]

    def clear(self) -> None:
        """Forget everything."""
        super().clear()
        self._held.clear()
