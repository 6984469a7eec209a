// Deep links: `/inspect#tool=greet&args={"name":"Ada"}` opens a tool with its values filled in.

import { hashParameters } from "../dom.js";

const KINDS = {
  tool: "tools",
  resource: "resources",
  template: "templates",
  prompt: "prompts",
  skill: "skills",
  event: "events",
  task: "tasks",
  server: "server",
  saved: "saved"
};
const NAMES = Object.fromEntries(Object.entries(KINDS).map(([name, kind]) => [kind, name]));

/** Parse a hash: `{kind, name, values}`; null without an item. */
export function read(hash) {
  const wanted = hashParameters(hash);
  const found = Object.keys(KINDS).find((name) => wanted.has(name));
  if (!found) return null;
  let values = null;
  try {
    values = JSON.parse(wanted.get("args") ?? "null");
  } catch {
    // Open the item without values.
  }
  return { kind: KINDS[found], name: wanted.get(found), values };
}

/** Return the hash for an item and its values. */
export function write(kind, name, values = null) {
  const args = values && Object.keys(values).length ? `&args=${encodeURIComponent(JSON.stringify(values))}` : "";
  return `#${NAMES[kind]}=${encodeURIComponent(name)}${args}`;
}
