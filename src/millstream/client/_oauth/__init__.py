"""OAuth for a client: finds out who gives tokens for a server, asks the person once, keeps the tokens fresh."""
