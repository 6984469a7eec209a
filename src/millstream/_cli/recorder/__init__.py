"""Recordings of messages between a client and a server, and their replay."""
