"""The web pages and their data."""
