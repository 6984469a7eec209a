"""Counters, histograms, logs, and health. Independent of MCP."""
