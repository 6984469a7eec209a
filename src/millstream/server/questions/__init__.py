"""What a server asks a client: open questions, and forms for the answers."""
