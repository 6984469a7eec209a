"""How often something may happen, and how many things at a time: in one worker, or in all that share a store."""

from millstream._http.message import neighborhood
from millstream._limits.gcra import Limiter, Rate, told

__all__ = ["Limiter", "Rate", "neighborhood", "told"]
