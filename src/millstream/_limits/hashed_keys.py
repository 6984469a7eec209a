"""Hashed keys of rate limits. The store never sees addresses or principals."""

from functools import lru_cache
from hashlib import sha256


@lru_cache(maxsize=4096)
def hash_key(policy: str, key: str) -> str:
    """Return a short name for a key of a policy."""
    return sha256(f"{policy}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
