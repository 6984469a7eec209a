// The connection of the page to the server: it is opened with what the person chose, given up when the server goes, and
// opened again when it is back.

import { Client } from "../mcp/client.js";
import { Http, HttpSse, isUnauthorized } from "../mcp/http.js";
import { WebSocketTransport } from "../mcp/websocket.js";
import { HttpError, RpcError, checkServer, wait } from "../mcp/wire.js";
import { showReconnected, showLost } from "../shell/connection.js";
import { cease, say } from "./bench.js";
import { capabilities, openSettings, ownHeaders } from "./settings.js";
import { asksToSignIn } from "./sign-in.js";

const WAITS_MS = [500, 1_000, 2_000, 4_000];

export const TRANSPORTS = {
  http: { title: "Streamable HTTP", line: Http, path: null },
  sse: { title: "HTTP+SSE", line: HttpSse, path: "sse" },
  websocket: { title: "WebSocket", line: WebSocketTransport, path: "ws" },
};

/** What is connected now. Only this module changes it. */
export const session = {
  /** @type {Client | null} */ client: null,
  server: {}, // what the server said about itself when we last connected
  endpoint: "mcp",
  /** @type {{name: string, url: string, signed_in: object | null} | null} */ via: null, // another server, which this one passes requests on to
  transport: "http",
  revision: "2026-07-28",
  level: "",
};

let opening = null; // the attempt to connect that is under way
let failures = 0;
let events = {};

/**
 * @param {object} on `sent`, `got`, `failed`, `ask` and `notified` as the client tells them; `state(text, look)`; `ready()` is
 *   awaited when a server is there, before the page calls itself connected; `signIn(error)` where another server asks for it
 */
export const connectSession = (on) => (events = on);

const target = () => (session.via ? `inspect/via/${encodeURIComponent(session.via.name)}` : (TRANSPORTS[session.transport].path ?? session.endpoint));

/** What goes with each request. On the way to another server, the key has a name of its own: ours is for this one. */
function headers() {
  const own = ownHeaders();
  if (!session.via) return own;
  return Object.fromEntries(Object.entries(own).map(([name, value]) => [name.toLowerCase() === "authorization" ? "mcp-inspect-authorization" : name, value]));
}

/** The address of the endpoint for programs elsewhere. */
export const address = () => session.via?.url ?? new URL(session.endpoint, document.baseURI).href;

/**
 * The other servers that the operator named, `{name, url, signed_in: {who, issuer, scopes} | null}`, and whether this
 * server sends its log to the page.
 */
export async function otherServers() {
  const response = await fetch("inspect/servers", { cache: "no-store" });
  return response.ok ? response.json() : { servers: [], log: false };
}

/** Start a new connection. Resolves with the client. Rejects if there is no connection, but the page keeps trying. */
export function connect() {
  session.client?.close();
  events.state("Connecting…", "");
  const gone = (error) => mine === session.client && fail(mine, error);
  const { sent, got, failed, ask, notified } = events;
  const Line = TRANSPORTS[session.transport].line;
  const mine = new Client((on) => new Line(target(), headers(), on), session.revision, capabilities(), { sent, got, failed, ask, notified, lost: gone });
  mine.logLevel = session.level;
  session.client = mine;
  const attempt = establish(mine);
  opening = attempt;
  attempt.catch((error) => session.client === mine && fail(mine, error)).finally(() => opening === attempt && (opening = null));
  return attempt;
}

async function establish(mine) {
  const found = await mine.open();
  if (session.client !== mine) return session.client;
  session.server = found;
  await applyLevel();
  await events.ready(mine);
  if (session.client !== mine) return session.client;
  failures = 0;
  showReconnected();
  events.state("Connected", "good");
  return mine;
}

/** Say that there is no connection, and wait for the server. If the server itself refused, it would refuse again. */
async function fail(mine, error) {
  if (mine.gone) return;
  mine.gone = true;
  cease();
  opening = null;
  if (session.via && asksToSignIn(error)) {
    events.state("Not signed in", "warn");
    return events.signIn(error);
  }
  events.state("Not connected", "bad");
  const retry = () => connect().catch(() => {});
  if (isUnauthorized(error)) return showLost(`The server wants you to sign in. ${error.message}`, () => openSettings("key"), "Sign in");
  const final = error instanceof RpcError || (error instanceof HttpError && error.status < 500);
  showLost(`${say(error)}${final ? "" : " This page reconnects when the server is back."}`, retry);
  while (!final && session.client === mine) {
    await wait(WAITS_MS[Math.min(failures, WAITS_MS.length - 1)]);
    failures += 1;
    if (session.client === mine && (await checkServer().catch(() => null)) && session.client === mine) retry();
  }
}

/** The connected client. If there is no connection, this tries again at once. */
export const connected = async () => opening ?? (session.client.gone ? connect() : session.client);

/** Send a request over the connection of now. */
export const request = async (...message) => (await connected()).request(...message);

/** Ask the server for log messages of the level that was chosen. */
export async function applyLevel() {
  const { client, level, server } = session;
  client.logLevel = level;
  if (client.handshake && level && server.capabilities?.logging) await client.request("logging/setLevel", { level });
}
