"""Injected faults: workers and stores are killed, stopped, and disconnected while clients publish and listen."""
