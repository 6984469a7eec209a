// JSON Schema validation (draft 2020-12), for the keywords that tools use. It interprets schemas, because the pages'
// Content-Security-Policy forbids compiling them to code.

import { resolve } from "./resolve.js";

const MAX_DEPTH = 64;
const MAX_PROBLEMS = 50;
const MAX_MS = 100; // Nested alternatives take exponential time. The rest is left to the server.

/** @param {unknown} value */
const kindOf = (value) => (value === null ? "null" : Array.isArray(value) ? "array" : typeof value);
/** @param {unknown} one @param {unknown} other */
const same = (one, other) => one === other || canonical(one) === canonical(other);
/** @type {(value: any) => any} */
const sorted = (value) => {
  if (Array.isArray(value)) return value.map(sorted);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(
    Object.keys(value)
      .sort()
      .map((key) => [key, sorted(value[key])])
  );
};
/** @param {unknown} value */
const canonical = (value) => JSON.stringify(sorted(value));
/** @param {unknown} value */
const brief = (value) => {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 60 ? `${text.slice(0, 57)}…` : text;
};
/** @param {string} type */
const article = (type) => (type === "null" ? type : `${/^[aio]/.test(type) ? "an" : "a"} ${type}`);
/** @param {string} text */
const length = (text) => [...text].length;

/** @type {Record<string, (value: any) => boolean>} */
const is = {
  string: (value) => typeof value === "string",
  number: (value) => typeof value === "number",
  integer: (value) => Number.isInteger(value),
  boolean: (value) => typeof value === "boolean",
  null: (value) => value === null,
  array: Array.isArray,
  object: (value) => kindOf(value) === "object"
};

/** @param {string} text */
const date = (text) =>
  /^\d{4}-\d\d-\d\d$/.test(text) &&
  !Number.isNaN(Date.parse(`${text}T00:00:00Z`)) &&
  new Date(`${text}T00:00:00Z`).toISOString().startsWith(text);
/** @param {string} text */
const time = (text) => /^([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?(z|[+-]([01]\d|2[0-3]):[0-5]\d)?$/i.test(text);
/** @type {Record<string, (text: string) => boolean>} */
const FORMATS = {
  date,
  time,
  "date-time": (text) => date(text.slice(0, 10)) && /^t$/i.test(text[10] ?? "") && time(text.slice(11)),
  duration: (text) => /^P(?!$)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+(\.\d+)?S)?)?)$/.test(text),
  email: (text) => /^[^\s@]+@[^\s@]+$/.test(text),
  uuid: (text) => /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text),
  uri: (text) => /^[a-z][a-z0-9+.-]*:[^\s]*$/i.test(text),
  ipv4: (text) => /^((25[0-5]|2[0-4]\d|1?\d?\d)(\.|$)){4}$/.test(text) && !text.endsWith("."),
  ipv6: (text) => /^[0-9a-f:.]{2,45}$/i.test(text) && text.includes(":")
};

const MAX_TRIES = 100_000;
const MAX_PATTERN = 2_000; // characters
const PIECES = /\\.|\[(?:\\.|[^\]\\])*(?:\]|\\?$)|\(|\)|\||[*+?]|\{(\d+)(,?)(\d*)\}|./gsu;

/**
 * Return how many ways a browser's matcher, which backtracks, may try at most before it gives up.
 *
 * @param {string} pattern @param {number} length of the text
 */
export const triesOf = (pattern, length) => {
  if (pattern.length > MAX_PATTERN) return Infinity;
  const groups = [1];
  let last = 1; // of the piece before, which may be repeated
  let repeated = false;
  for (const [piece, least, comma, most] of pattern.matchAll(PIECES)) {
    const isRepeat = "*+?".includes(piece) || least !== undefined;
    const times = piece === "?" ? 1 : least === undefined ? length : Number(comma ? most || length : least);
    if (piece === ")") last = groups.pop() ?? 1;
    else if (!isRepeat) last = 1;
    const top = Math.max(groups.length - 1, 0);
    if (piece === "(") groups.push(1);
    else if (piece === ")") groups[top] = (groups[top] ?? 1) * last;
    else if (piece === "|") groups[top] = (groups[top] ?? 1) * 2;
    else if (isRepeat && !repeated)
      groups[top] = ((groups[top] ?? 1) / last) * last ** times * (least && !comma ? 1 : times + 1);
    repeated = isRepeat || piece === "("; // what follows is no repeat of its own
  }
  // Without `^`, it may begin anywhere.
  return (groups[0] ?? 1) * (pattern[0] === "^" && !pattern.includes("|") ? 1 : length + 1);
};

/** Return whether a text matches; true if that's left to the server. @param {string} pattern @param {string} text */
const matches = (pattern, text) => {
  try {
    return !(triesOf(pattern, text.length) <= MAX_TRIES) || new RegExp(pattern, "u").test(text);
  } catch {
    return true; // A pattern of another dialect
  }
};

/**
 * @typedef {Record<string, (argument: any, value: any) => string | false | undefined>} Checks a check for each keyword,
 *   which returns a message or false
 */

/** @type {Checks} */
const TEXT = {
  minLength: (least, value) => length(value) < least && `At least ${least} characters; it has ${length(value)}.`,
  maxLength: (most, value) => length(value) > most && `At most ${most} characters; it has ${length(value)}.`,
  pattern: (pattern, value) => !matches(pattern, value) && `Must match ${pattern}.`,
  format: (format, value) => FORMATS[format] && !FORMATS[format](value) && `${brief(value)} isn't a valid ${format}.`
};
/** @type {Checks} */
const NUMBER = {
  minimum: (least, value) => value < least && `At least ${least}; it's ${value}.`,
  maximum: (most, value) => value > most && `At most ${most}; it's ${value}.`,
  exclusiveMinimum: (bound, value) => value <= bound && `More than ${bound}; it's ${value}.`,
  exclusiveMaximum: (bound, value) => value >= bound && `Less than ${bound}; it's ${value}.`,
  multipleOf: (step, value) =>
    Math.abs(value / step - Math.round(value / step)) > 1e-9 && `A multiple of ${step}; it's ${value}.`
};
/** @type {Checks} */
const ARRAY = {
  minItems: (least, value) => value.length < least && `At least ${least} items; it has ${value.length}.`,
  maxItems: (most, value) => value.length > most && `At most ${most} items; it has ${value.length}.`,
  uniqueItems: (wanted, value) => wanted && new Set(value.map(canonical)).size < value.length && "Items must be unique."
};
/** @type {Checks} */
const OBJECT = {
  minProperties: (least, value) => Object.keys(value).length < least && `At least ${least} properties.`,
  maxProperties: (most, value) => Object.keys(value).length > most && `At most ${most} properties.`
};
/** @type {Checks} */
const ANY = {
  enum: (all, value) =>
    !new Set(all.map(canonical)).has(canonical(value)) && `One of ${all.map(brief).join(", ")}; it's ${brief(value)}.`,
  const: (only, value) => !same(only, value) && `Must be ${brief(only)}; it's ${brief(value)}.`
};
/** @type {Record<string, Checks>} */
const BY_KIND = { string: TEXT, number: NUMBER, array: ARRAY, object: OBJECT };

/** @typedef {[path: Path, keyword: string, message: string]} Problem */
/** @typedef {(step?: string | number) => At} Below */
/**
 * @typedef {object} At a place in the value
 * @property {Schema | boolean} root document for references
 * @property {Path} path
 * @property {number} depth
 * @property {number} until when to stop
 * @property {(...problem: Problem) => void} report
 */

/**
 * Return the problems of a value, at most 50.
 *
 * @param {unknown} value
 * @param {Json | boolean} schema
 * @param {Json | boolean} root document for references
 * @returns {Array<{path: Array<string | number>, message: string, keyword: string}>}
 */
export function validate(value, schema, root = schema) {
  /** @type {Array<{path: Path, message: string, keyword: string}>} */
  const problems = [];
  check(value, schema, {
    root,
    path: [],
    depth: 0,
    until: performance.now() + MAX_MS,
    report: (path, keyword, message) => problems.length < MAX_PROBLEMS && problems.push({ path, keyword, message })
  });
  return problems;
}

/** @param {unknown} value @param {any} schema @param {At} at */
const fits = (value, schema, at) => {
  let valid = true;
  check(value, schema, { ...at, depth: at.depth + 1, report: () => (valid = false) });
  return valid;
};

/** @param {At} at */
const isLate = ({ until }) => performance.now() > until;

/** @param {any} value @param {any} given @param {At} at */
function check(value, given, at) {
  if (given === true || given === undefined || at.depth > MAX_DEPTH || isLate(at)) return;
  if (given === false) return void at.report(at.path, "false", "No value is allowed here.");
  const schema = resolve(given, at.root);
  /** @param {string | number} [step] */
  const below = (step) => ({
    ...at,
    depth: at.depth + 1,
    path: step === undefined ? at.path : [...at.path, step]
  });
  const types = schema.type === undefined ? null : [schema.type].flat();
  if (types && !types.some((type) => is[type]?.(value) ?? true)) {
    return void at.report(
      at.path,
      "type",
      `Must be ${types.map(article).join(" or ")}; it's ${["object", "null"].includes(kindOf(value)) ? article(kindOf(value)) : brief(value)}.`
    );
  }
  for (const [keyword, test] of Object.entries({ ...ANY, ...BY_KIND[kindOf(value)] })) {
    const message = schema[keyword] !== undefined && test(schema[keyword], value);
    if (message) at.report(at.path, keyword, message);
  }
  if (is.array(value)) items(value, schema, at, below);
  if (is.object(value)) properties(value, schema, at, below);
  alternatives(value, schema, at, below);
}

/** @param {any[]} value @param {Schema} schema @param {At} at @param {Below} below */
function items(value, schema, at, below) {
  const first = schema.prefixItems ?? [];
  value.forEach((each, index) => {
    const part = index < first.length ? first[index] : schema.items;
    if (part !== undefined) check(each, part, below(index));
  });
  if (
    schema.contains !== undefined &&
    schema.minContains !== 0 &&
    !value.some((each) => fits(each, schema.contains, at))
  )
    at.report(at.path, "contains", "No item matches.");
}

/** @param {Json} value @param {Schema} schema @param {At} at @param {Below} below */
function properties(value, schema, at, below) {
  const own = schema.properties ?? {};
  const patterns = Object.entries(schema.patternProperties ?? {});
  for (const name of schema.required ?? [])
    if (!Object.hasOwn(value, name)) at.report([...at.path, name], "required", "Required.");
  for (const [name, others] of Object.entries(schema.dependentRequired ?? {})) {
    for (const other of Object.hasOwn(value, name) && Array.isArray(others) ? others : [])
      if (!Object.hasOwn(value, other)) at.report([...at.path, other], "required", `Required with ${name}.`);
  }
  for (const [name, each] of Object.entries(value)) {
    if (isLate(at)) return;
    const matching = patterns.filter(([pattern]) => matches(pattern, name)).map(([, part]) => part);
    if (Object.hasOwn(own, name)) check(each, own[name], below(name));
    for (const part of matching) check(each, part, below(name));
    if (schema.propertyNames !== undefined && !fits(name, schema.propertyNames, at))
      at.report([...at.path, name], "propertyNames", "This name isn't allowed.");
    if (Object.hasOwn(own, name) || matching.length || schema.additionalProperties === undefined) continue;
    if (schema.additionalProperties === false)
      at.report([...at.path, name], "additionalProperties", "The schema doesn't allow this property.");
    else check(each, schema.additionalProperties, below(name));
  }
}

/** @param {unknown} value @param {Schema} schema @param {At} at @param {Below} below */
function alternatives(value, schema, at, below) {
  for (const part of schema.allOf ?? []) check(value, part, below());
  if (schema.anyOf && !schema.anyOf.some((/** @type {Schema} */ part) => fits(value, part, at)))
    reportClosest(value, schema.anyOf, "anyOf", at, below);
  if (schema.oneOf) {
    const count = schema.oneOf.filter((/** @type {Schema} */ part) => fits(value, part, at)).length;
    if (count === 0) reportClosest(value, schema.oneOf, "oneOf", at, below);
    else if (count > 1) at.report(at.path, "oneOf", `Matches ${count} of the alternatives; it must match exactly one.`);
  }
  if (schema.not !== undefined && fits(value, schema.not, at)) at.report(at.path, "not", "This value isn't allowed.");
  if (schema.if !== undefined) {
    const branch = fits(value, schema.if, at) ? schema.then : schema.else;
    if (branch !== undefined) check(value, branch, below());
  }
}

/**
 * Report the problems of the closest alternative, if none matches.
 *
 * @param {unknown} value
 * @param {any[]} parts
 * @param {string} keyword
 * @param {At} at
 * @param {Below} below
 */
function reportClosest(value, parts, keyword, at, below) {
  const found = parts.map((part) => {
    /** @type {Problem[]} */
    const problems = [];
    check(value, part, { ...below(), report: (...problem) => problems.push(problem) });
    return problems;
  });
  // A wrong type or tag at this place indicates another alternative.
  /** @param {Problem[]} problems */
  const distance = (problems) =>
    problems.length +
    10 *
      problems.filter(([path, word]) => (word === "type" && path.length === at.path.length) || word === "const").length;
  const best = found.reduce((one, other) => (distance(other) < distance(one) ? other : one));
  if (parts.length > 1 && best.some(([path, word]) => word === "type" && path.length === at.path.length)) {
    at.report(at.path, keyword, `Matches none of the ${parts.length} alternatives: it's ${article(kindOf(value))}.`);
  } else for (const problem of best) at.report(...problem);
}
