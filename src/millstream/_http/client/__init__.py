"""The one outbound HTTP engine: of the client, of sign-ins, and of key sets."""
