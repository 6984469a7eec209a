// The official TypeScript SDK signs in: sign_in.mjs PACKAGES LINE URL [DOCUMENT]. LINE is 1 or 2.
//
// It registers, or describes itself at the URL DOCUMENT, has the person sign in and agree (a page and a form, by fetch),
// exchanges the code, calls a tool, refreshes, calls it again, and then one that takes a scope which it doesn't have yet.
// Prints what the tools said, and how often the person was asked.

import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [packages, line, url, document] = process.argv.slice(2);
const require = createRequire(join(packages, "package.json"));
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const client = await load(line === "1" ? "@modelcontextprotocol/sdk/client/index.js" : "@modelcontextprotocol/client");
const http = line === "1" ? await load("@modelcontextprotocol/sdk/client/streamableHttp.js") : client;
const { UnauthorizedError } = line === "1" ? await load("@modelcontextprotocol/sdk/client/auth.js") : client;

const kept = { visits: 0 };
const back = "http://127.0.0.1:8765/callback";

async function person(link) {
  kept.visits += 1;
  const page = await fetch(link);
  const [, ticket] = (await page.text()).match(/name="ticket" value="([^"]+)"/);
  const form = new URLSearchParams({ ticket, name: "ada", password: "correct horse", answer: "allow" });
  const headers = { cookie: page.headers.get("set-cookie").split(";")[0], origin: url };
  const answer = await fetch(`${url}/authorize`, { method: "POST", body: form, headers, redirect: "manual" });
  kept.answer = new URL(answer.headers.get("location")).searchParams;
}

const provider = {
  redirectUrl: back,
  clientMetadataUrl: document,
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

async function withSignIn(transport, what) {
  try {
    return await what();
  } catch (error) {
    if (!(error instanceof UnauthorizedError)) throw error;
    await (line === "1" ? transport.finishAuth(kept.answer.get("code")) : transport.finishAuth(kept.answer));
    return undefined;
  }
}

async function call(name) {
  for (;;) {
    const transport = new http.StreamableHTTPClientTransport(new URL(`${url}/mcp`), { authProvider: provider });
    const made = new client.Client({ name: "ts", version: line });
    const result = await withSignIn(transport, async () => {
      await made.connect(transport);
      return made.callTool({ name, arguments: {} });
    });
    await made.close();
    if (result) return result.content[0].text;
    if (kept.visits > 3) throw new Error("The person is asked again and again.");
  }
}

const first = await call("who");
const refresh = kept.tokens.refresh_token;
kept.tokens = { ...kept.tokens, access_token: "no.longer.valid" };
const second = await call("who");
const rotated = refresh !== kept.tokens.refresh_token;
const before = kept.visits;
// Line 1 answers "insufficient_scope" by a refresh wherever it can, and gives up when that brought no further scope.
if (line === "1") delete kept.tokens.refresh_token;
const stepped = await call("order");
const third = await call("who");
console.log(JSON.stringify({
  first, second, before, stepped, third, visits: kept.visits, client: kept.client.client_id, rotated,
}));
