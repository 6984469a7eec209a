// Checks of a result: a path, a relation, and a value. Independent of the page.

import { triesOf } from "../schema/validate.js";

/** @type {Record<string, string>} */
export const RELATIONS = {
  equals: "equals",
  differs: "doesn't equal",
  contains: "contains",
  matches: "matches",
  atLeast: "is at least",
  atMost: "is at most",
  exists: "is there",
  missing: "isn't there"
};
export const WITHOUT_VALUE = ["exists", "missing"];

const MAX_PATHS = 150;
const MAX_DEPTH = 8;
const MAX_TRIES = 20_000_000; // of a browser's matcher, which take a fraction of a second

/** Split a path such as `content[0].text` into names and indexes. @param {string} path */
const steps = (path) => path.split(/[.[\]]+/).filter(Boolean);

/** Return the value at a path, or undefined. @param {unknown} value @param {string} path */
export const at = (value, path) =>
  steps(path).reduce(
    (/** @type {any} */ found, step) => (found != null && Object.hasOwn(found, step) ? found[step] : undefined),
    value
  );

/** Parse an entered value: as JSON if possible, or else as text. @param {string} text */
function typed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** @param {unknown} one @param {unknown} other */
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
/** @type {Record<string, (found: any, text: string) => boolean>} */
const holds = {
  equals: (found, text) => found === text || same(found, typed(text)),
  differs: (found, text) => !holds.equals(found, text),
  contains: (found, text) =>
    Array.isArray(found)
      ? found.some((each) => holds.equals(each, text))
      : typeof found === "string"
        ? found.includes(text)
        : JSON.stringify(found ?? "").includes(text),
  matches: (found, text) => {
    const whole = typeof found === "string" ? found : (JSON.stringify(found) ?? "");
    if (!(triesOf(text, whole.length) <= MAX_TRIES))
      throw new Error(
        `This pattern could take too long for ${whole.length.toLocaleString()} characters. Begin it with ^, or use fewer repeats.`
      );
    return new RegExp(text, "u").test(whole);
  },
  atLeast: (found, text) => typeof found === "number" && found >= Number(text),
  atMost: (found, text) => typeof found === "number" && found <= Number(text),
  exists: (found) => found !== undefined,
  missing: (found) => found === undefined
};

/**
 * Evaluate a check.
 *
 * @param {{path: string, relation: string, value: string}} check
 * @param {unknown} result
 * @returns {{good: boolean, found: unknown, problem?: string}}
 */
export function judge({ path, relation, value }, result) {
  const found = at(result, path);
  try {
    return { good: holds[relation](found, value), found };
  } catch (/** @type {any} */ error) {
    return { good: false, found, problem: error.message };
  }
}

/**
 * Return the paths of a result's primitive values, for suggestions.
 *
 * @param {unknown} value
 * @param {string[]} [found]
 */
export function paths(value, path = "", found = [], depth = 0) {
  if (found.length >= MAX_PATHS || depth > MAX_DEPTH) return found;
  if (value === null || typeof value !== "object") found.push(path);
  else {
    if (Array.isArray(value)) found.push(`${path}.length`);
    for (const [name, each] of Object.entries(value))
      paths(each, Array.isArray(value) ? `${path}[${name}]` : path ? `${path}.${name}` : name, found, depth + 1);
  }
  return found;
}
