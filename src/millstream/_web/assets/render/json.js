// JSON with syntax colors, and as a collapsible tree.

import { element, pre, pretty } from "../dom.js";

const TOKEN = /("(?:\\.|[^"\\])*")(\s*:)?|\b(true|false|null)\b|(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)/g;
const MAX_COLORED = 60_000;
const OPEN_ENTRIES = 12;
const SHOWN_ENTRIES = 200;

/**
 * Return nodes for JSON text with syntax colors. Very long text stays plain to keep the page responsive.
 *
 * @param {string} text
 */
export function colored(text) {
  if (text.length > MAX_COLORED) return [text];
  const nodes = [];
  let from = 0;
  for (const found of text.matchAll(TOKEN)) {
    const [all, string, colon, word] = found;
    nodes.push(text.slice(from, found.index));
    from = found.index + all.length;
    const look = string ? (colon ? "code-key" : "code-string") : word ? "code-word" : "code-number";
    nodes.push(element("span", look, string ?? all));
    if (colon) nodes.push(colon);
  }
  nodes.push(text.slice(from));
  return nodes.filter((node) => node !== "");
}

/** Create a block with a value as JSON. @param {unknown} value @param {string} label */
export const jsonBlock = (value, label) => pre(label, ...colored(pretty(value) ?? "undefined"));

/** @param {unknown} value */
const leaf = (value) => {
  const look = typeof value === "string" ? "code-string" : typeof value === "number" ? "code-number" : "code-word";
  return element("span", { className: look, dir: "auto" }, JSON.stringify(value) ?? "undefined");
};

/**
 * Create a tree of a value. Each problem is shown beside its place.
 *
 * @param {unknown} value
 * @param {Array<{path: Array<string | number>, message: string}>} problems as returned by `validate`
 */
export function tree(value, problems = []) {
  return element("ul", { className: "tree", "aria-label": "Value" }, branch("", value, problems, 0));
}

/**
 * @param {string | number} name
 * @param {any} value
 * @param {Array<{path: Path, message: string}>} problems
 * @param {number} depth
 */
function branch(name, value, problems, depth) {
  const here = problems
    .filter(({ path }) => path.length === depth)
    .map(({ message }) => element("span", "error", ` ${message}`));
  const title = name === "" ? [] : [element("span", { className: "code-key", dir: "auto" }, String(name)), ": "];
  if (value === null || typeof value !== "object")
    return element("li", {}, ...title, value === undefined ? element("span", "soft", "missing") : leaf(value), ...here);
  const entries = Array.isArray(value) ? [...value.entries()] : Object.entries(value);
  /** @type {Array<[string | number, undefined]>} */
  const missing = problems
    .filter(({ path }) => path.length === depth + 1 && !Object.hasOwn(value, path[depth]))
    .map(({ path }) => [path[depth], undefined]);
  const words = Array.isArray(value) ? ["item", "items"] : ["property", "properties"];
  const count = `${entries.length} ${words[entries.length === 1 ? 0 : 1]}`;
  const open = depth === 0 || entries.length <= OPEN_ENTRIES || problems.some(({ path }) => path.length > depth);
  const body = element("ul");
  const fill = () => {
    if (body.childElementCount) return;
    /** @param {string | number} key */
    const below = (key) => problems.filter(({ path }) => String(path[depth]) === String(key));
    body.append(
      ...[...entries, ...missing].slice(0, SHOWN_ENTRIES).map(([key, each]) => branch(key, each, below(key), depth + 1))
    );
    if (entries.length > SHOWN_ENTRIES)
      body.append(element("li", "soft", `and ${(entries.length - SHOWN_ENTRIES).toLocaleString()} more`));
  };
  if (!entries.length && !missing.length)
    return element("li", {}, ...title, element("span", "soft", Array.isArray(value) ? "[]" : "{}"), ...here);
  const details = element(
    "details",
    { open: open && depth < 4 },
    element("summary", {}, ...title, element("span", "soft", count), ...here),
    body
  );
  if (details.open) fill();
  details.addEventListener("toggle", () => details.open && fill());
  return element("li", {}, details);
}
