/**
 * The `wire` of the TypeScript SDK's end-to-end suite, with `millstream run` between the client and the server.
 *
 * `vitest.config.mjs` beside this file puts it in the place of test/e2e/helpers/index.ts, whose other exports it passes
 * on. With `ALONE` set, the client connects to the server, over the same sockets. With `CATALOG` set, Millstream runs a
 * gateway with a policy that matches nothing, so it merges lists instead of relaying. `STARTER` is the socket of
 * starter.py, `PIPE` a command that connects its standard streams to a Unix socket.
 */

import { randomUUID } from "node:crypto";
import { createServer, type Server as HttpServer } from "node:http";
import { type AddressInfo, connect, createServer as createSocketServer, type Socket } from "node:net";
import { dirname, join } from "node:path";
import { PassThrough, type Readable, type Writable } from "node:stream";

import { getRequestListener } from "@hono/node-server";
import { type Client, SSEClientTransport, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { createMcpHandler, ReadBuffer, serializeMessage } from "@modelcontextprotocol/server";
import { StdioServerTransport } from "@modelcontextprotocol/server/stdio";

import type { Transport } from "../types";
import { hostPerSession, hostStateless, type RecordedHttpExchange, type Wired, type WireOptions } from "./index";
import { startLegacySseHost } from "./sse-host";
import { sniffTransport } from "./wire-sniffer";

export * from "./index";

const { ALONE, CATALOG, PIPE = "[]", STARTER = "" } = process.env;
const MODERN_REVISION = "2026-07-28";

type Factory = Parameters<typeof createMcpHandler>[0];
type Fetch = (url: URL | string, init?: RequestInit) => Promise<Response>;

/** Closes what a test has opened, in the order of this list. */
class Wires implements Wired {
    readonly closing: (() => unknown)[] = [];
    url?: URL;
    fetch?: Fetch;
    httpLog?: RecordedHttpExchange[];

    async [Symbol.asyncDispose](): Promise<void> {
        for (const close of this.closing) await close();
    }
}

/** Send the starter the order for a command. The command ends with the connection. */
function start(upstream: string | string[], stdio: boolean): Socket {
    const order: { arguments: string[]; stdio: boolean; files?: Record<string, string> } = { arguments: ["run"], stdio };
    if (stdio) order.arguments.push("--transport", "stdio");
    if (CATALOG) {
        const path = join(dirname(STARTER), `${randomUUID()}.toml`);
        const setting = `${typeof upstream === "string" ? "url" : "command"} = ${JSON.stringify(upstream)}`;
        const policy = '[upstreams.suite.policy]\ndeny = ["no_such_tool_*"]\n';
        order.files = { [path]: `[upstreams.suite]\n${setting}\nprefix = ""\n${policy}` };
        order.arguments.push(path);
    } else {
        order.arguments.push("--", ...[upstream].flat());
    }
    const socket = connect(STARTER);
    socket.on("error", () => {}); // "close" follows
    socket.write(`${JSON.stringify(order)}\n`);
    return socket;
}

/** Serve the server at a URL through Millstream. Return the URL for the client. */
async function relay(upstream: URL, wires: Wires): Promise<URL> {
    if (ALONE) return upstream;
    const socket = start(upstream.href, false);
    wires.closing.push(() => socket.destroy());
    const port = await new Promise<number>((resolve, reject) => {
        let reply = "";
        socket.on("data", (chunk) => {
            reply += chunk;
            if (reply.endsWith("\n")) resolve(JSON.parse(reply).port);
        });
        socket.on("close", () => reject(new Error("Millstream doesn't start.")));
    });
    return new URL(upstream.pathname, `http://127.0.0.1:${port}`);
}

/** The client's end of a stdio connection. */
class StreamTransport {
    onmessage?: (message: unknown) => void;
    onerror?: (error: Error) => void;
    onclose?: () => void;
    readonly #buffer = new ReadBuffer();

    constructor(
        readonly input: Readable,
        readonly output: Writable
    ) {}

    async start(): Promise<void> {
        this.input.on("data", (chunk: Buffer) => {
            this.#buffer.append(chunk);
            for (let message = this.#buffer.readMessage(); message; message = this.#buffer.readMessage()) {
                this.onmessage?.(message);
            }
        });
        this.input.on("error", (error: Error) => this.onerror?.(error));
        this.input.on("close", () => this.onclose?.());
    }

    async send(message: Parameters<typeof serializeMessage>[0]): Promise<void> {
        this.output.write(serializeMessage(message));
    }

    async close(): Promise<void> {
        this.output.end();
    }
}

/** Connect over standard streams. Each connection to the command has a server of its own. */
async function wireStreams(makeServer: Factory, client: Client, options: WireOptions, wires: Wires): Promise<void> {
    const servers: Awaited<ReturnType<Factory>>[] = [];
    const sockets: Socket[] = [];
    const open = async (): Promise<[PassThrough, PassThrough]> => {
        const server = await (makeServer as () => ReturnType<Factory>)();
        servers.push(server);
        const input = new PassThrough();
        const output = new PassThrough();
        await server.connect(new StdioServerTransport(input, output));
        return [input, output];
    };
    let first: [PassThrough, PassThrough] | undefined = await open(); // tests use it before the client has connected
    const host = createSocketServer(async (socket) => {
        sockets.push(socket);
        socket.on("error", () => {});
        const ready = first;
        first = undefined;
        const [input, output] = ready ?? (await open());
        socket.pipe(input);
        output.pipe(socket);
    });
    const path = join(dirname(STARTER), `${randomUUID()}.sock`);
    await new Promise<void>((resolve) => host.listen(path, resolve));
    const socket = ALONE ? connect(path) : start([...JSON.parse(PIPE), path], true);
    socket.on("error", () => {});
    wires.closing.push(
        () => Promise.all([client.close(), ...servers.map((server) => server.close())]),
        () => socket.destroy(),
        () => sockets.forEach((each) => void each.destroy()),
        () => host.close()
    );
    await client.connect(sniffTransport(new StreamTransport(socket, socket) as never, "client", options));
}

/** Connect over the transport of 2024-11-05. */
async function wireSse(makeServer: Factory, client: Client, options: WireOptions, wires: Wires): Promise<void> {
    const host = await startLegacySseHost(makeServer as never);
    wires.closing.push(() => client.close());
    try {
        wires.url = await relay(host.url, wires);
    } finally {
        wires.closing.push(() => host.close());
    }
    await client.connect(sniffTransport(new SSEClientTransport(wires.url), "client", options));
}

/** Return the suite's own host for a transport. */
function makeHost(transport: Transport, makeServer: Factory, options: WireOptions) {
    if (transport === "entryStateless" || transport === "entryModern") {
        const legacy = transport === "entryModern" ? "reject" : "stateless";
        const handler = createMcpHandler(makeServer, { legacy, ...options.entry });
        return { handle: (request: Request) => handler.fetch(request), close: () => handler.close() };
    }
    const host = (transport === "streamableHttpStateless" ? hostStateless : hostPerSession)(makeServer as never);
    return { handle: host.handleRequest, close: host.close };
}

/** Return a `fetch` that records exchanges. */
function record(log: RecordedHttpExchange[]): Fetch {
    return async (url, init) => {
        const request = new Request(url, init);
        const response = await fetch(url, init);
        log.push({
            method: request.method.toUpperCase(),
            requestHeaders: request.headers,
            ...(typeof init?.body === "string" && { requestBody: init.body }),
            status: response.status,
            contentType: response.headers.get("content-type") ?? "",
            response: response.clone()
        });
        return response;
    };
}

async function listen(server: HttpServer): Promise<URL> {
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    return new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}/mcp`);
}

/** Connect over Streamable HTTP. */
async function wireHttp(
    transport: Transport,
    makeServer: Factory,
    client: Client,
    options: WireOptions,
    wires: Wires
): Promise<void> {
    const host = makeHost(transport, makeServer, options);
    const http = createServer(getRequestListener(host.handle, { overrideGlobalObjects: false }));
    wires.closing.push(() => client.close());
    wires.fetch = fetch;
    if (transport.startsWith("entry")) {
        wires.httpLog = [];
        wires.fetch = record(wires.httpLog);
    }
    try {
        wires.url = await relay(await listen(http), wires);
    } finally {
        wires.closing.push(
            () => host.close(),
            () => http.closeAllConnections(),
            () => http.close()
        );
    }
    let sniffed = options;
    if (transport === "entryModern") {
        client.setVersionNegotiation({ mode: { pin: MODERN_REVISION } });
        sniffed = { allowInputRequiredResults: true, ...options };
    }
    const through = new StreamableHTTPClientTransport(wires.url, { fetch: wires.fetch });
    await client.connect(sniffTransport(through, "client", sniffed));
}

/** See the suite's function of this name. */
export async function wire(
    transport: Transport,
    makeServer: Factory,
    client: Client,
    options: WireOptions = {}
): Promise<Wired> {
    const wires = new Wires();
    try {
        if (transport === "inMemory" || transport === "stdio") await wireStreams(makeServer, client, options, wires);
        else if (transport === "sse") await wireSse(makeServer, client, options, wires);
        else await wireHttp(transport, makeServer, client, options, wires);
    } catch (error) {
        await wires[Symbol.asyncDispose]();
        throw error;
    }
    return wires;
}
