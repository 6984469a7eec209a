"""The tasks extension, `io.modelcontextprotocol/tasks`: calls that outlive their connection."""
