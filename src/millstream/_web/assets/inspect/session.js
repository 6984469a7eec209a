// The page's connection to the server: connects with the user's settings, and reconnects when the server is back.

import { page } from "./host.js";
import { post } from "../dom.js";
import { Client, NEWEST } from "../mcp/client.js";
import {
  checkServer,
  Http,
  HttpError,
  httpError,
  HttpSse,
  isUnauthorized,
  RpcError,
  wait,
  WebSocketTransport
} from "../mcp/transports.js";
import { showLost, showReconnected } from "../shell/connection.js";
import { cease, say } from "./bench.js";
import { capabilities, openSettings, ownHeaders, useServer } from "./settings.js";
import { asksToSignIn } from "./sign-in.js";

/** @typedef {import("../mcp/transports.js").Transport} Transport */

const RETRY_MS = 1_000;
const WAITS_MS = [100, 500, 1_000, 2_000, 4_000]; // at first, for a restart by `millstream dev`

/** @type {Record<string, {title: string, line: new (...given: any[]) => Transport, path: string | null}>} */
export const TRANSPORTS = {
  http: { title: "Streamable HTTP", line: Http, path: null },
  sse: { title: "HTTP+SSE", line: HttpSse, path: "sse" },
  websocket: { title: "WebSocket", line: WebSocketTransport, path: "ws" }
};

/** @typedef {{name: string, url: string, signed_in: Json | null}} Server */

/** The current connection. Only this module changes it. */
export const session = {
  /** @type {Client | null} */ client: null,
  /** @type {Json} */ server: {}, // the server's last `initialize` or `server/discover` result
  endpoint: "mcp",
  /** @type {Server | null} */ via: null, // another server, reached through the proxy
  transport: "http",
  revision: NEWEST,
  level: "",
  development: false // whether other servers can be added
};

/** @type {Promise<Client> | null} the pending connection attempt */
let opening = null;
let failures = 0;
let waiting = 0; // runs that wait for a connection
const lost = new WeakSet(); // clients

const target = () =>
  session.via
    ? `inspect/via/${encodeURIComponent(session.via.name)}`
    : (TRANSPORTS[session.transport].path ?? session.endpoint);

/** Return the headers of each request. Credentials for another server have their own header. */
function headers() {
  const own = ownHeaders();
  if (!session.via) return own;
  return Object.fromEntries(
    Object.entries(own).map(([name, value]) => [
      name.toLowerCase() === "authorization" ? "mcp-inspect-authorization" : name,
      value
    ])
  );
}

/** Return the absolute URL of the endpoint. */
export const address = () => session.via?.url ?? new URL(session.endpoint, document.baseURI).href;

/**
 * Return the other servers, `{name, url, signed_in: {who, issuer, scopes} | null}`, and whether this server is in
 * development: it then sends its log to the page, and others can be added.
 */
export async function otherServers() {
  const response = await fetch("inspect/servers", { cache: "no-store" });
  return response.ok ? response.json() : { servers: [], development: false };
}

/** Add another server until this one stops. Rejects if it isn't allowed. @param {string} url @returns {Promise<Server>} */
export async function addServer(url) {
  const response = await post("inspect/servers", { url });
  if (!response.ok) throw await httpError(response);
  return response.json();
}

/** Start a new connection. Resolves with the client, or rejects on failure while the page keeps retrying. */
export function connect() {
  session.client?.close();
  useServer(session.via?.url);
  page.state("Connecting…", "");
  /** @param {Error} error */
  const gone = (error) => mine === session.client && fail(mine, error);
  const Line = TRANSPORTS[session.transport].line;
  const mine = new Client((on) => new Line(target(), headers(), on), session.revision, capabilities(), {
    ...page,
    lost: gone
  });
  mine.logLevel = session.level;
  session.client = mine;
  const attempt = establish(mine);
  opening = attempt;
  attempt
    .catch((error) => {
      if (session.client === mine) fail(mine, error);
    })
    .finally(() => {
      if (opening === attempt) opening = null;
    });
  return attempt;
}

/** @param {Client} mine @returns {Promise<Client>} */
async function establish(mine) {
  if (session.via && session.development) await addServer(session.via.url).catch(() => {}); // lost by a restart
  const found = await mine.open();
  if (session.client !== mine) return opening ?? session.client ?? mine; // another attempt has begun
  session.server = found;
  await applyLevel();
  await page.ready(mine);
  if (session.client !== mine) return opening ?? session.client ?? mine;
  failures = 0;
  showReconnected();
  page.state("Connected", "good");
  return mine;
}

/**
 * Show that the connection is lost, and reconnect when the server is back, unless it rejected the client.
 *
 * @param {Client} mine
 * @param {any} error
 */
async function fail(mine, error) {
  if (lost.has(mine)) return;
  lost.add(mine);
  if (!waiting) cease();
  opening = null;
  if (session.via && asksToSignIn(error)) {
    page.state("Not signed in", "warn");
    return page.signIn(error);
  }
  page.state("Not connected", "bad");
  const retry = () => connect().catch(() => {});
  if (isUnauthorized(error))
    return showLost(`The server wants you to sign in. ${error.message}`, () => openSettings("key"), "Sign in");
  const final = error instanceof RpcError || (error instanceof HttpError && error.status < 500);
  showLost(`${say(error)}${final ? "" : " This page reconnects when the server is back."}`, retry);
  while (!final && session.client === mine) {
    await wait(WAITS_MS[Math.min(failures, WAITS_MS.length - 1)]);
    failures += 1;
    if (session.client === mine && (await checkServer().catch(() => null)) && session.client === mine) retry();
  }
}

/**
 * Return the connected client. Reconnects immediately if the connection is lost, and once more a second later, because
 * the network may be on its way back.
 */
export async function connected() {
  waiting += 1;
  try {
    const usable = () => opening ?? (!session.client || lost.has(session.client) ? connect() : session.client);
    return await Promise.resolve(usable()).catch(async (error) => {
      if (!(error instanceof TypeError)) throw error;
      await wait(RETRY_MS);
      return usable();
    });
  } finally {
    waiting -= 1;
  }
}

/** @type {Client["request"]} over the current connection */
export const request = async (...message) => (await connected()).request(...message);

/** Request log messages of the selected level. */
export async function applyLevel() {
  const { client, level, server } = session;
  if (!client) return;
  client.logLevel = level;
  if (client.handshake && level && server.capabilities?.logging) await client.request("logging/setLevel", { level });
}
