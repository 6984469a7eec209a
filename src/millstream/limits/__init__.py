"""How often something may happen, and how many things at a time: in one worker, or in all that share a store."""

from millstream.limits.gcra import Limiter, Rate, neighbourhood, told

__all__ = ["Limiter", "Rate", "neighbourhood", "told"]
