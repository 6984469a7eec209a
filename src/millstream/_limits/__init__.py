"""Rate limits and concurrency limits, per worker or for all workers that share a store."""
