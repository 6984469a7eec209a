"""Faults on purpose: workers and stores are killed, stopped and cut off while clients publish and listen."""
