// An OpenID provider for tests, by the certified npm package oidc-provider: identity.mjs PORT OTHER
//
// It's at PORT as Google is, with people's addresses in its ID tokens, and at OTHER as the specification wants it, with
// addresses at the userinfo endpoint only. Clients register themselves. The sign-in pages are those of the package.
// POST /rotate gives it new keys; GET /asked tells how often each path was asked.

import { generateKeyPairSync } from "node:crypto";
import http from "node:http";
import { Provider } from "oidc-provider";

// A login is an address. Mallory has an account with an address of a company that doesn't manage it.
const people = {
  "ada@example.com": { name: "Ada Lovelace", hd: "example.com", email_verified: true },
  "eve@example.com": { name: "Eve", hd: "example.com", email_verified: false },
  "mallory@example.com": { name: "Mallory", email_verified: true },
  "grace@gmail.com": { name: "Grace Hopper", email_verified: true },
};

let keys = 0;
const newKey = () => {
  const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
  return { ...privateKey.export({ format: "jwk" }), kid: `key-${(keys += 1)}`, alg: "RS256", use: "sig" };
};

const configuration = (conformIdTokenClaims) => ({
  clients: [],
  conformIdTokenClaims,
  jwks: { keys: [newKey()] },
  cookies: { keys: ["a key of tests"] },
  scopes: ["openid", "offline_access", "orders:read", "orders:write"],
  claims: { openid: ["sub"], email: ["email", "email_verified", "hd"], profile: ["name"] },
  findAccount: (ctx, login) => ({
    accountId: login,
    claims: () => ({ sub: login, email: login, ...people[login] }),
  }),
  ttl: { ClientCredentials: 600, AccessToken: 600, Session: 600, Grant: 600, Interaction: 600, IdToken: 600 },
  pkce: { required: () => true },
  features: {
    registration: { enabled: true },
    introspection: { enabled: true },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (ctx, resource) => ({
        scope: "orders:read orders:write",
        audience: resource,
        accessTokenFormat: resource.endsWith("/opaque") ? "opaque" : "jwt",
        jwt: { sign: { alg: "RS256" } },
      }),
    },
  },
});

function listen(port, conform) {
  const issuer = `http://127.0.0.1:${port}`;
  const settings = configuration(conform);
  const asked = {};
  const make = () => {
    const provider = new Provider(issuer, settings);
    provider.use((ctx, next) => {
      // Google lets people choose among their accounts. Whoever comes here has one.
      if (ctx.query.prompt === "select_account") ctx.query = { ...ctx.query, prompt: undefined };
      return next();
    });
    return provider.callback();
  };
  let answer = make();
  const server = http.createServer((request, response) => {
    const path = request.url.split("?")[0];
    if (path === "/asked") return response.end(JSON.stringify(asked));
    if (path === "/rotate") {
      settings.jwks = { keys: [newKey()] };
      answer = make();
      return response.end("{}");
    }
    asked[path] = (asked[path] ?? 0) + 1;
    return answer(request, response);
  });
  return new Promise((resolve) => { server.listen(port, "127.0.0.1", resolve); });
}

const [port, other] = process.argv.slice(2);
await listen(Number(other), true);
await listen(Number(port), false);
