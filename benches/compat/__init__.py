"""Published servers on the compatibility layer."""
