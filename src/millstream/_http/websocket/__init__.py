"""Sending to many WebSockets, each with a bounded queue."""
