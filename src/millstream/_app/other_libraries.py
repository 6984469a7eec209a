"""Replacements for the names that programs for other libraries use, which errors suggest."""

from millstream._config import Settings

OTHER_NAMES = {
    **{
        f"{verb}_{kind}s": f"`@mcp.{kind}` adds a function to the list. To read it, write "
        f"`async with Client(mcp) as client: await client.{kind}s()`."
        for verb in ("get", "list")
        for kind in ("prompt", "resource", "tool")
    },
    **dict.fromkeys(
        ("add_middleware", "middleware"),
        "Write `Server(middleware=[…])` for calls, and `app = GZipMiddleware(mcp)` for HTTP.",
    ),
    **dict.fromkeys(
        ("add_exception_handler", "exception_handler"),
        "Raise ToolError in tools, or translate exceptions in `Server(middleware=[…])`.",
    ),
    "add_provider": "Write `mcp.mount(other)` for a server, or `mcp.upstream(name, target)` for a remote one.",
    "add_transform": "Policies modify upstream items: `mcp.upstream(name, target, policy=…)`.",
    "add_prompt": "Write `mcp.prompt(function)`.",
    "add_resource": "Write `mcp.resource(uri)(function)`.",
    "add_resource_fn": "Write `mcp.resource(uri)(function)`.",
    "add_route": "Write `mcp.route(path)(function)`.",
    "app": "The server is the ASGI application: `app = mcp`.",
    "auth": "Write `Server(auth=…)`.",
    "create_proxy": "Write `mcp.upstream(…)`.",
    "as_proxy": "Write `mcp.upstream(…)`.",
    "asgi": "The server is the ASGI application: `app = mcp`.",
    "call_tool": "To define a tool, write `@mcp.tool`. To call one, write `async with Client(mcp) as client: await "
    "client.call(name)`.",
    "from_fastapi": "Write `Server.from_fastapi(app)`.",
    "get": "Write `@mcp.route(path)`.",
    "get_context": "Add a parameter to your function: `ctx: Context`.",
    "import_server": "Write `mcp.mount(other, prefix=…)`.",
    "include_router": "Write `@mcp.route(path)`, or mount both in one application.",
    "on_event": "Write `Server(lifespan=…)`.",
    "post": "Write `@mcp.route(path, methods=['POST'])`.",
    **dict.fromkeys(("broadcast", "emit", "publish"), "Write `await mcp.hub.publish(channel, data)`."),
    "read_resource": "Write `async with Client(mcp) as client: await client.read(uri)`.",
    "run_http_async": "Write `await mcp.run_async('http')`.",
    "run_sse_async": "Write `await mcp.run_async('http')`, which also serves /sse.",
    "run_stdio_async": "Write `await mcp.run_async('stdio')`.",
    "run_streamable_http_async": "Write `await mcp.run_async('http')`.",
    "router": "Write `@mcp.route(path)`.",
    "session_manager": "A mounted server needs none: write `FastAPI(lifespan=mcp.lifespan)`.",
    "state": "Write `Server(lifespan=…)`: the value it yields is `ctx.lifespan`. For a limiter, write "
    "`settings=Settings(limit_calls='60/minute')`.",
}
"""Attribute of a server in another library -> its replacement here."""
_ORIGINS = dict.fromkeys(
    ("allow_origins", "cors", "cors_origins", "origins"), "Write `Server(settings=Settings(allowed_origins=[…]))`."
)
OTHER_KEYWORDS = {
    **{name: f"Write `settings=Settings({name}=…)`." for name in Settings.__struct_fields__ if name != "store"},
    **dict.fromkeys(
        ("api_key", "api_keys", "auth_token", "bearer", "key", "keys", "password", "secret", "token", "tokens"),
        "Write `auth=auth.keys(…)` for keys, or `auth=auth.jwt(…)` for tokens.",
    ),
    **_ORIGINS,
    "debug": "Start it with `millstream run --dev`.",
    "description": "Write `info=Info(description=…)`.",
    "host": "Pass it when you start the server: `mcp.run(host=…)`, or `millstream run --host`.",
    "json_response": "Write `settings=Settings(json_only=True)`.",
    "dependencies": "Start it with `millstream run FILE --with PACKAGE`.",
    "icons": "Write `info=Info(icons=…)`.",
    "list_page_size": "Write `settings=Settings(page_size=…)`.",
    "mask_error_details": "Clients read only ToolErrors, unless `settings=Settings(show_errors=True)`.",
    **dict.fromkeys(
        ("on_duplicate", "on_duplicate_tools", "on_duplicate_resources", "on_duplicate_prompts"),
        "A second item with the same name is an error. Write `mcp.remove_tool(name)` before you replace one.",
    ),
    **dict.fromkeys(("include_tags", "exclude_tags"), "Write `mcp.disable(tag=…)`."),
    "prompt": "Write `instructions=…`.",
    "port": "Pass it when you start the server: `mcp.run(port=…)`, or `millstream run --port`.",
    "providers": "Write `mcp.mount(other)` for a server, or `mcp.upstream(name, target)` for a remote one.",
    "rate_limit": "Write `settings=Settings(limit_calls=…)`.",
    "session_state_store": "Write `store='redis://…'`.",
    "stateless_http": "Write `settings=Settings(sessions=False)`.",
    "strict_input_validation": "Arguments are strict, unless `settings=Settings(coerce_arguments=True)`.",
    "tasks": "Write `@mcp.tool(task='allowed')` for each tool.",
    "title": "Write `info=Info(title=…)`.",
    "tool_serializer": "Return `ToolResult(content=[Text(…)])` from the tool.",
    "tools": "Write `mcp.add_tool(function)`.",
    "transforms": "Policies modify upstream items: `mcp.upstream(name, target, policy=…)`.",
    "website_url": "Write `info=Info(website_url=…)`.",
}
"""Argument of a server in another library -> its replacement here."""
RUN_KEYWORDS = {
    **{name: f"Write `Server(settings=Settings({name}=…))`." for name in Settings.__struct_fields__},
    **{
        name: f"Write `Server({name}=…)`." for name in ("auth", "instructions", "lifespan", "name", "settings", "store")
    },
    **_ORIGINS,
    **dict.fromkeys(("ssl_certfile", "certfile"), "Write `Server(settings=Settings(tls_cert=…))`."),
    **dict.fromkeys(("ssl_keyfile", "keyfile"), "Write `Server(settings=Settings(tls_key=…))`."),
    "debug": "Start it with `millstream run --dev`.",
    "middleware": "Write `app = GZipMiddleware(mcp)`, and serve app as an ASGI application.",
    "reload": "Start it with `millstream run --reload`.",
    "show_banner": "Leave it out.",
}
"""The same for `Server.run`."""
