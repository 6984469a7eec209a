"""Recordings of what a client and a server say to each other, and what they are good for."""
