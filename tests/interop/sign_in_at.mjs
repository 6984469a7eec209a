// The official TypeScript SDK signs in at one address of MCP: sign_in_at.mjs PACKAGES LINE ORIGIN PATH. LINE is 1 or 2.
// Over HTTP+SSE if the path is that of the stream. Prints what the tool said, and the resource that the client requested.

import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [packages, line, origin, path] = process.argv.slice(2);
const require = createRequire(join(packages, "package.json"));
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const one = line === "1";
const client = await load(one ? "@modelcontextprotocol/sdk/client/index.js" : "@modelcontextprotocol/client");
const http = one ? await load("@modelcontextprotocol/sdk/client/streamableHttp.js") : client;
const sse = one ? await load("@modelcontextprotocol/sdk/client/sse.js") : client;
const { UnauthorizedError } = one ? await load("@modelcontextprotocol/sdk/client/auth.js") : client;
const Transport = path.endsWith("/sse") ? sse.SSEClientTransport : http.StreamableHTTPClientTransport;

const kept = {};
const back = "http://127.0.0.1:8765/callback";

async function person(link) {
  kept.resource = new URL(link).searchParams.get("resource");
  const page = await fetch(link);
  const [, ticket] = (await page.text()).match(/name="ticket" value="([^"]+)"/);
  const form = new URLSearchParams({ ticket, name: "ada", password: "correct horse", answer: "allow" });
  const headers = { cookie: page.headers.get("set-cookie").split(";")[0], origin };
  const answer = await fetch(new URL("/authorize", link), { method: "POST", body: form, headers, redirect: "manual" });
  kept.answer = new URL(answer.headers.get("location")).searchParams;
}

const authProvider = {
  redirectUrl: back,
  clientMetadata: {
    client_name: "TypeScript", redirect_uris: [back], token_endpoint_auth_method: "none",
    grant_types: ["authorization_code", "refresh_token"], response_types: ["code"],
  },
  clientInformation: () => kept.client,
  saveClientInformation: (value) => { kept.client = value; },
  tokens: () => kept.tokens,
  saveTokens: (value) => { kept.tokens = value; },
  redirectToAuthorization: person,
  saveCodeVerifier: (value) => { kept.verifier = value; },
  codeVerifier: () => kept.verifier,
};

const connect = async (transport) => {
  const made = new client.Client({ name: "ts", version: line });
  await made.connect(transport);
  return made;
};

const transport = new Transport(new URL(origin + path), { authProvider });
try {
  await connect(transport);
} catch (error) {
  if (!(error instanceof UnauthorizedError)) throw error;
  await transport.finishAuth(one ? kept.answer.get("code") : kept.answer);
}
const connected = await connect(new Transport(new URL(origin + path), { authProvider }));
const said = (await connected.callTool({ name: "who", arguments: {} })).content[0].text;
await connected.close();
console.log(JSON.stringify({ said, resource: kept.resource }));
process.exit(0);
