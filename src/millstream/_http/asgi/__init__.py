"""Requests and replies as ASGI messages."""
