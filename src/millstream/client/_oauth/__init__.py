"""OAuth for clients: discovers the authorization server, logs the user in once, and renews tokens."""
