"""A server whose calls are OpenTelemetry spans, printed to standard output. Other exporters work the same way."""

# region: server
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from millstream import Server

provider = TracerProvider(resource=Resource.create({"service.name": "bookshop"}))
provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
trace.set_tracer_provider(provider)

mcp = Server("bookshop")
tracer = trace.get_tracer("bookshop")


@mcp.tool
async def price(isbn: str) -> int:
    """Price of a book, in cents."""
    with tracer.start_as_current_span("look up"):
        return 100 * len(isbn)


# endregion

if __name__ == "__main__":
    mcp.run()
