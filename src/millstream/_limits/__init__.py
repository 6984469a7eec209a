"""Rate limits and concurrency limits, per worker or for all workers that share a store."""

from millstream._http.message import peer_network
from millstream._limits.limiters import Limiter, Rate

__all__ = ["Limiter", "Rate", "peer_network"]
