// What a server offers, for pages that only show it.

import { Client, REVISIONS } from "./client.js";
import { Http } from "./transports.js";

const ignore = () => {};

/** @type {Record<string, [string, string, string]>} kind -> its capability, its method, and the key of its list */
const KINDS = {
  tools: ["tools", "tools/list", "tools"],
  resources: ["resources", "resources/list", "resources"],
  templates: ["resources", "resources/templates/list", "resourceTemplates"],
  prompts: ["prompts", "prompts/list", "prompts"]
};

/**
 * Connect, and return the server's description and `list(...kinds)`, which returns the lists by kind and disconnects.
 * Rejects if the caller has no access.
 *
 * @param {string} endpoint
 */
export async function connect(endpoint) {
  const client = new Client(
    (on) => new Http(endpoint, {}, on),
    REVISIONS[0],
    {},
    {
      sent: ignore,
      got: ignore,
      failed: ignore,
      ask: () => Promise.reject(new Error("This page can't answer.")),
      notified: ignore,
      lost: ignore
    }
  );
  const server = await client.open();
  /** @param {...string} kinds */
  const list = async (...kinds) => {
    const lists = kinds.map(async (kind) => {
      const [capability, method, key] = KINDS[kind];
      return [kind, server.capabilities?.[capability] ? await client.list(method, key) : []];
    });
    try {
      return Object.fromEntries(await Promise.all(lists));
    } finally {
      client.close().catch(ignore);
    }
  };
  return { server, list };
}
