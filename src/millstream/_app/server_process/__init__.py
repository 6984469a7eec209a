"""Serving an application: the ASGI entry, our HTTP server, and the start-up panel."""
