// The official TypeScript SDK signs in at one address of MCP: sign_in_at.mjs PACKAGES LINE ORIGIN PATH. LINE is 1 or 2.
// Over HTTP+SSE if the path is that of the stream. Prints what the tool said, and the resource that the client requested.
// SIGN_IN_CLIENT is the id of a client that the issuer knows; without it, the client registers itself.

import { execFileSync } from "node:child_process";
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

const known = process.env.SIGN_IN_CLIENT;
const kept = known ? { client: { client_id: known } } : {};
const back = "http://127.0.0.1:8765/callback";

function person(link) {
  kept.resource = new URL(link).searchParams.get("resource");
  const program = join(import.meta.dirname, "person.py");
  kept.answer = new URL(execFileSync("python3", [program, String(link), back], { encoding: "utf-8" })).searchParams;
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
