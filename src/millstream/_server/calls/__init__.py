"""One request in flight, and the state that requests share."""
