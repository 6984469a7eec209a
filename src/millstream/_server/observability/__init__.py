"""Observation of calls: metrics, the message log, and traces."""
