// Deep links: `/inspect#tool=greet&args={"name":"Ada"}` opens a tool with its values filled in.

import { hashParameters } from "../dom.js";

/** @type {Record<string, string>} */
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

/** @type {Record<string, string>} */
const IDS = { resources: "uri", templates: "uriTemplate" };

/** Return what identifies an item of a kind. The names of resources needn't be unique. @param {string} kind @param {Json} item */
export const idOf = (kind, item) => item[IDS[kind] ?? "name"] ?? item.name;

/**
 * Parse a hash; null without an item.
 *
 * @param {string} hash
 * @returns {{kind: string, name: string, values: any} | null}
 */
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
  return { kind: KINDS[found], name: wanted.get(found) ?? "", values };
}

/**
 * Return the hash for an item and its values.
 *
 * @param {string} kind
 * @param {string} name
 * @param {Json | null} [values]
 */
export function write(kind, name, values = null) {
  const args = values && Object.keys(values).length ? `&args=${encodeURIComponent(JSON.stringify(values))}` : "";
  return `#${NAMES[kind]}=${encodeURIComponent(name)}${args}`;
}
