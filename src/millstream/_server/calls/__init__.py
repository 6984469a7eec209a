"""One request in flight, and what it shares with the others."""
