"""Counters, histograms, logs and health. Knows no MCP method."""
