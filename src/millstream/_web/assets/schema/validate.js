// JSON Schema, draft 2020-12, as far as tools use it: checks a value and says what is wrong, and where. It only
// interprets: compiling a schema to code needs what the pages' Content-Security-Policy forbids.

import { resolve } from "./resolve.js";

const MAX_DEPTH = 64;
const MAX_PROBLEMS = 50;
const MAX_STEPS = 100_000; // Alternatives in alternatives take exponential time: what was not reached by then is left to the server.

const kindOf = (value) => (value === null ? "null" : Array.isArray(value) ? "array" : typeof value);
const same = (one, other) => one === other || JSON.stringify(sorted(one)) === JSON.stringify(sorted(other));
const sorted = (value) => {
  if (Array.isArray(value)) return value.map(sorted);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.keys(value).sort().map((key) => [key, sorted(value[key])]));
};
const brief = (value) => {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 60 ? `${text.slice(0, 57)}…` : text;
};
const article = (type) => (type === "null" ? type : `${/^[aio]/.test(type) ? "an" : "a"} ${type}`);
const length = (text) => [...text].length;

const is = {
  string: (value) => typeof value === "string",
  number: (value) => typeof value === "number",
  integer: (value) => Number.isInteger(value),
  boolean: (value) => typeof value === "boolean",
  null: (value) => value === null,
  array: Array.isArray,
  object: (value) => kindOf(value) === "object",
};

const date = (text) => /^\d{4}-\d\d-\d\d$/.test(text) && !Number.isNaN(Date.parse(`${text}T00:00:00Z`)) && new Date(`${text}T00:00:00Z`).toISOString().startsWith(text);
const time = (text) => /^([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?(z|[+-]([01]\d|2[0-3]):[0-5]\d)?$/i.test(text);
const FORMATS = {
  date,
  time,
  "date-time": (text) => date(text.slice(0, 10)) && /^t$/i.test(text[10] ?? "") && time(text.slice(11)),
  duration: (text) => /^P(?!$)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+(\.\d+)?S)?)?)$/.test(text),
  email: (text) => /^[^\s@]+@[^\s@]+$/.test(text),
  uuid: (text) => /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text),
  uri: (text) => /^[a-z][a-z0-9+.-]*:[^\s]*$/i.test(text),
  ipv4: (text) => /^((25[0-5]|2[0-4]\d|1?\d?\d)(\.|$)){4}$/.test(text) && !text.endsWith("."),
  ipv6: (text) => /^[0-9a-f:.]{2,45}$/i.test(text) && text.includes(":"),
};

const matches = (pattern, text) => {
  try {
    return new RegExp(pattern, "u").test(text);
  } catch {
    return true; // A pattern of another dialect: the server knows it.
  }
};

/** One check for each keyword: `(argument, value, at)` gives words, or nothing. */
const TEXT = {
  minLength: (least, value) => length(value) < least && `At least ${least} characters; it has ${length(value)}.`,
  maxLength: (most, value) => length(value) > most && `At most ${most} characters; it has ${length(value)}.`,
  pattern: (pattern, value) => !matches(pattern, value) && `Must match ${pattern}.`,
  format: (format, value) => FORMATS[format] && !FORMATS[format](value) && `${brief(value)} isn't a valid ${format}.`,
};
const NUMBER = {
  minimum: (least, value) => value < least && `At least ${least}; it's ${value}.`,
  maximum: (most, value) => value > most && `At most ${most}; it's ${value}.`,
  exclusiveMinimum: (bound, value) => value <= bound && `More than ${bound}; it's ${value}.`,
  exclusiveMaximum: (bound, value) => value >= bound && `Less than ${bound}; it's ${value}.`,
  multipleOf: (step, value) => Math.abs(value / step - Math.round(value / step)) > 1e-9 && `A multiple of ${step}; it's ${value}.`,
};
const ARRAY = {
  minItems: (least, value) => value.length < least && `At least ${least} items; it has ${value.length}.`,
  maxItems: (most, value) => value.length > most && `At most ${most} items; it has ${value.length}.`,
  uniqueItems: (wanted, value) => wanted && new Set(value.map((each) => JSON.stringify(sorted(each)))).size < value.length && "No two items may be the same.",
};
const OBJECT = {
  minProperties: (least, value) => Object.keys(value).length < least && `At least ${least} properties.`,
  maxProperties: (most, value) => Object.keys(value).length > most && `At most ${most} properties.`,
};
const ANY = {
  enum: (all, value) => !all.some((each) => same(each, value)) && `One of ${all.map(brief).join(", ")}; it's ${brief(value)}.`,
  const: (only, value) => !same(only, value) && `Must be ${brief(only)}; it's ${brief(value)}.`,
};
const BY_KIND = { string: TEXT, number: NUMBER, array: ARRAY, object: OBJECT };

/**
 * What is wrong with a value, at most 50 problems.
 *
 * @param {unknown} value
 * @param {object | boolean} schema
 * @param {object} root the document that references are looked up in
 * @returns {Array<{path: Array<string | number>, message: string, keyword: string}>}
 */
export function validate(value, schema, root = schema) {
  const problems = [];
  check(value, schema, { root, path: [], depth: 0, budget: { left: MAX_STEPS }, say: (path, keyword, message) => problems.length < MAX_PROBLEMS && problems.push({ path, keyword, message }) });
  return problems;
}

const fits = (value, schema, at) => {
  let good = true;
  check(value, schema, { ...at, depth: at.depth + 1, say: () => (good = false) });
  return good;
};

function check(value, given, at) {
  if (given === true || given === undefined || at.depth > MAX_DEPTH || (at.budget.left -= 1) < 0) return;
  if (given === false) return void at.say(at.path, "false", "Nothing is allowed here.");
  const schema = resolve(given, at.root);
  const below = (part, step) => ({ ...at, depth: at.depth + 1, path: step === undefined ? at.path : [...at.path, step] });
  const types = schema.type === undefined ? null : [schema.type].flat();
  if (types && !types.some((type) => is[type]?.(value) ?? true)) {
    return void at.say(at.path, "type", `Must be ${types.map(article).join(" or ")}; it's ${["object", "null"].includes(kindOf(value)) ? article(kindOf(value)) : brief(value)}.`);
  }
  for (const [keyword, test] of Object.entries({ ...ANY, ...BY_KIND[kindOf(value)] })) {
    const words = schema[keyword] !== undefined && test(schema[keyword], value);
    if (words) at.say(at.path, keyword, words);
  }
  if (is.array(value)) items(value, schema, at, below);
  if (is.object(value)) properties(value, schema, at, below);
  alternatives(value, schema, at, below);
}

function items(value, schema, at, below) {
  const first = schema.prefixItems ?? [];
  value.forEach((each, index) => {
    const part = index < first.length ? first[index] : schema.items;
    if (part !== undefined) check(each, part, below(part, index));
  });
  if (schema.contains !== undefined && schema.minContains !== 0 && !value.some((each) => fits(each, schema.contains, at))) at.say(at.path, "contains", "No item matches.");
}

function properties(value, schema, at, below) {
  const own = schema.properties ?? {};
  const patterns = Object.entries(schema.patternProperties ?? {});
  for (const name of schema.required ?? []) if (!Object.hasOwn(value, name)) at.say([...at.path, name], "required", "Required.");
  for (const [name, others] of Object.entries(schema.dependentRequired ?? {})) {
    for (const other of Object.hasOwn(value, name) ? others : []) if (!Object.hasOwn(value, other)) at.say([...at.path, other], "required", `Required with ${name}.`);
  }
  for (const [name, each] of Object.entries(value)) {
    const matching = patterns.filter(([pattern]) => matches(pattern, name)).map(([, part]) => part);
    if (Object.hasOwn(own, name)) check(each, own[name], below(own[name], name));
    for (const part of matching) check(each, part, below(part, name));
    if (schema.propertyNames !== undefined && !fits(name, schema.propertyNames, at)) at.say([...at.path, name], "propertyNames", "This name isn't allowed.");
    if (Object.hasOwn(own, name) || matching.length || schema.additionalProperties === undefined) continue;
    if (schema.additionalProperties === false) at.say([...at.path, name], "additionalProperties", "The schema doesn't have this property.");
    else check(each, schema.additionalProperties, below(schema.additionalProperties, name));
  }
}

function alternatives(value, schema, at, below) {
  for (const part of schema.allOf ?? []) check(value, part, below(part));
  if (schema.anyOf && !schema.anyOf.some((part) => fits(value, part, at))) nearest(value, schema.anyOf, "anyOf", at, below);
  if (schema.oneOf) {
    const count = schema.oneOf.filter((part) => fits(value, part, at)).length;
    if (count === 0) nearest(value, schema.oneOf, "oneOf", at, below);
    else if (count > 1) at.say(at.path, "oneOf", `Fits ${count} of the shapes; it must fit one.`);
  }
  if (schema.not !== undefined && fits(value, schema.not, at)) at.say(at.path, "not", "Has a shape that isn't allowed.");
  if (schema.if !== undefined) {
    const branch = fits(value, schema.if, at) ? schema.then : schema.else;
    if (branch !== undefined) check(value, branch, below(branch));
  }
}

/** No alternative fits: tell what the one that comes nearest is missing. */
function nearest(value, parts, keyword, at, below) {
  const found = parts.map((part) => {
    const problems = [];
    check(value, part, { ...below(part), say: (path, word, message) => problems.push([path, word, message]) });
    return problems;
  });
  // A wrong type or tag at this very place says that another alternative was meant.
  const distance = (problems) => problems.length + 10 * problems.filter(([path, word]) => (word === "type" && path.length === at.path.length) || word === "const").length;
  const best = found.reduce((one, other) => (distance(other) < distance(one) ? other : one));
  if (parts.length > 1 && best.some(([path, word]) => word === "type" && path.length === at.path.length)) {
    at.say(at.path, keyword, `Fits none of the ${parts.length} shapes: it's ${article(kindOf(value))}.`);
  } else for (const problem of best) at.say(...problem);
}
