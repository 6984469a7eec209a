"""Two servers, each in a file of its own."""
