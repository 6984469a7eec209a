"""The gateway to servers and APIs elsewhere."""
