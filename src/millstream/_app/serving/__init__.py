"""Serving an application: the ASGI entry, our HTTP server, the start-up panel."""
