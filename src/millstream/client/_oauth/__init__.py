"""OAuth for clients: discovers the authorization server, has the user log in once, and renews tokens."""
