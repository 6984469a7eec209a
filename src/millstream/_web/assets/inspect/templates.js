// URI templates (the part of RFC 6570 that resources use), and completion of values.

import { element } from "../dom.js";

const EXPRESSION = /\{([+#./;?&]?)([^{}]+)\}/g;
/** @type {Record<string, [string, string]>} */
const LEAD = {
  "": ["", ","],
  "+": ["", ","],
  "#": ["#", ","],
  ".": [".", "."],
  "/": ["/", "/"],
  ";": [";", ";"],
  "?": ["?", "&"],
  "&": ["&", "&"]
};

/** @param {string} list */
const names = (list) => list.split(",").map((name) => name.replace(/\*$|:\d+$/, ""));

/** Return the variables of a template, each once. @param {string} template */
export const variables = (template) => [
  ...new Set([...template.matchAll(EXPRESSION)].flatMap(([, , list]) => names(list)))
];

/** Expand a template. Variables without a value are left out. @param {string} template @param {Json} values */
export function expand(template, values) {
  return template.replace(EXPRESSION, (_, operator, list) => {
    const [first, between] = LEAD[operator];
    const write = "+#".includes(operator) && operator ? encodeURI : encodeURIComponent;
    const parts = names(list)
      .filter((name) => values[name])
      .map((name) => (";?&".includes(operator) && operator ? `${name}=${write(values[name])}` : write(values[name])));
    return parts.length ? first + parts.join(between) : "";
  });
}

/**
 * Add completion to a field. A newer request cancels the older one.
 *
 * @param {Json} each
 * @param {Json} ref
 * @param {Json[]} list
 * @param {(params: Json, signal: AbortSignal) => Promise<Json>} request
 */
export function complete(each, ref, list, request) {
  const choices = element("datalist", { id: `${each.control.id}-values` });
  each.control.setAttribute("list", choices.id);
  each.control.after(choices);
  /** @type {AbortController | null} */
  let asking = null;
  const look = async () => {
    asking?.abort();
    const mine = new AbortController();
    asking = mine;
    const others = list.filter((other) => other !== each).map((other) => [other.name, other.read()]);
    const known = Object.fromEntries(others.filter(([, value]) => value));
    const params = {
      ref,
      argument: { name: each.name, value: each.control.value },
      ...(Object.keys(known).length ? { context: { arguments: known } } : {})
    };
    try {
      const { completion } = await request(params, mine.signal);
      choices.replaceChildren(...completion.values.map((/** @type {string} */ value) => element("option", { value })));
    } catch {
      // Completion is optional.
    }
  };
  each.control.addEventListener("input", look);
  each.control.addEventListener("focus", look, { once: true });
}
