"""Recordings of messages between a client and a server."""
