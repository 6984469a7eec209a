"""A store in the parent process, shared by the workers on one machine without a separate server."""
