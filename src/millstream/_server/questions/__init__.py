"""Questions of a server to a client: forms, conversations for its model, and the wait for answers."""
