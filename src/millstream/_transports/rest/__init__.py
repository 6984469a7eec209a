"""Tools as plain REST operations, and their OpenAPI description."""
