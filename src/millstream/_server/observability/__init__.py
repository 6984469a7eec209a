"""Watching calls: metrics, the message log, traces."""
