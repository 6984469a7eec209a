"""Questions of a server to a client: forms, sampling conversations, and pending answers."""
