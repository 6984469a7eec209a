"""The tasks extension, `io.modelcontextprotocol/tasks`: calls that outlive their connection."""

from millstream.extensions.tasks._extension import TasksExtension

__all__ = ["TasksExtension"]
