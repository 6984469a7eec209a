// URI templates (RFC 6570, as far as resources use them), and values that the server completes while one types.

import { element } from "../dom.js";

const EXPRESSION = /\{([+#./;?&]?)([^}]+)\}/g;
const LEAD = { "": ["", ","], "+": ["", ","], "#": ["#", ","], ".": [".", "."], "/": ["/", "/"], ";": [";", ";"], "?": ["?", "&"], "&": ["&", "&"] };

const names = (list) => list.split(",").map((name) => name.replace(/\*$|:\d+$/, ""));

/** The variables of a template, each once. */
export const variables = (template) => [...new Set([...template.matchAll(EXPRESSION)].flatMap(([, , list]) => names(list)))];

/** The URI for these values; what has no value is left out. */
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

/** Offer values for a field. Only the newest question counts. */
export function complete(each, ref, list, request) {
  const choices = element("datalist", { id: `${each.control.id}-values` });
  each.control.setAttribute("list", choices.id);
  each.control.after(choices);
  let asking = null;
  const look = async () => {
    asking?.abort();
    asking = new AbortController();
    const others = list.filter((other) => other !== each).map((other) => [other.name, other.read()]);
    const known = Object.fromEntries(others.filter(([, value]) => value));
    const params = { ref, argument: { name: each.name, value: each.control.value }, ...(Object.keys(known).length ? { context: { arguments: known } } : {}) };
    try {
      const { completion } = await request(params, asking.signal);
      choices.replaceChildren(...completion.values.map((value) => element("option", { value })));
    } catch {
      // Without completions one types the whole value.
    }
  };
  each.control.addEventListener("input", look);
  each.control.addEventListener("focus", look, { once: true });
}
