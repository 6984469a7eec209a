"""What several owners share (a table, a queue, a number of bytes), so that no owner can use it up for the others."""


class Share:
    """Counts what each owner holds of something bounded, and refuses what exceeds the owner's share.

    An owner is a principal; without sign-in, an address; or a session. The owner above its share is refused, and no
    entry of another owner is evicted for it. Name in the error what is full, what the owner holds (`count`), and when
    to try again. The empty owner is the server itself, or a caller that has the server to itself: it may hold
    everything. A share counts for one process.

    Args:
        maximum: what all owners may hold together: a number of entries, or of bytes.
        each: what one owner may hold; half of `maximum` by default.

    Example:
        ::

            watches = Share(1_000)
            if not watches.take(call.owner):
                raise ToolError(f"You follow {watches.count(call.owner)} resources. Unsubscribe from one first.")
    """

    def __init__(self, maximum: int, *, each: int | None = None) -> None:
        self.maximum: int = maximum
        self.each: int = max(1, maximum // 2) if each is None else each
        self.used: int = 0
        """What all owners hold together."""
        self._held: dict[str, int] = {}

    def fit(self, largest: int) -> None:
        """Grow, if needed, so that two owners can take this amount at once."""
        self.maximum = max(self.maximum, 2 * largest)
        self.each = max(self.each, self.maximum // 2)

    def count(self, owner: str) -> int:
        """Return the amount an owner holds."""
        return self._held.get(owner, 0)

    def has_room(self, owner: str, amount: int = 1) -> bool:
        """Return whether `take` would succeed."""
        within = not owner or self._held.get(owner, 0) + amount <= self.each
        return within and self.used + amount <= self.maximum

    def take(self, owner: str, amount: int = 1) -> bool:
        """Count an amount of an owner. Return False, and count nothing, if it exceeds the share or the maximum."""
        if not self.has_room(owner, amount):
            return False
        if amount:
            self._held[owner] = self._held.get(owner, 0) + amount
            self.used += amount
        return True

    def leave(self, owner: str, amount: int = 1) -> None:
        """Give back an amount that `take` has counted."""
        self.used -= amount
        held = self._held.get(owner, 0) - amount
        if held:
            self._held[owner] = held
        else:
            self._held.pop(owner, None)
