// Shared by all kinds of items: the detail view with copying, saving, and history.

import { page } from "./host.js";
import { element, lazyDetails, pretty } from "../dom.js";
import { nodes } from "../render/content.js";
import { jsonBlock } from "../render/json.js";
import { withoutSecrets } from "../schema/controls.js";
import { copyable } from "../shell/controls.js";
import { bench } from "./bench.js";
import { forget, remember } from "./history.js";
import { curl, pythonCode, typescript } from "./exports.js";
import * as links from "./links.js";
import { keep } from "./saved.js";
import { address, request, session } from "./session.js";
import { ownHeaders } from "./settings.js";
import { asksToSignIn, signInCard } from "./sign-in.js";

/** @typedef {import("./bench.js").Work} Work */

/** @param {string} text */
export const badge = (text, look = "") => element("span", `badge ${look}`, text);

/** @type {(schema?: Json) => Array<{title: string, text: (...given: any[]) => string}>} */
export const copies = (schema) => [
  { title: "curl", text: ({ method, params }) => curl(address(), method, params, ownHeaders(), schema) },
  { title: "Python", text: ({ method, params }) => pythonCode(address(), method, params, ownHeaders()) },
  { title: "TypeScript", text: ({ method, params }) => typescript(address(), method, params, ownHeaders()) },
  { title: "JSON", text: ({ params }) => pretty(params) }
];

/**
 * Return the formats for copying, including a link to this page with the values but without secrets.
 *
 * @param {string} kind
 * @param {Json} item
 * @param {(values: Json) => Json} kept
 */
const copiesOf = (kind, item, kept) => [
  ...copies(item.inputSchema),
  {
    title: "Link to this page",
    text: (/** @type {Json} */ _, /** @type {Json} */ values) =>
      new URL(links.write(kind, links.idOf(kind, item), kept(values)), location.href).href
  }
];

/** @param {string} uri */
const openUri = (uri) => page.jump({ kind: "resources", name: uri, values: null });

/** Return the nodes of content blocks. Links open resources. @param {Json[]} list */
export const contentNodes = (list) => list.flatMap((each) => nodes(each, openUri));

/** @param {Json[]} list */
export const drawContent = (list) =>
  list.length ? contentNodes(list) : [element("p", "soft", "The result is empty.")];

/**
 * Create collapsed blocks of JSON, rendered when they're opened.
 *
 * @param {string} title
 * @param {...[unknown, string]} blocks
 */
export const folded = (title, ...blocks) =>
  lazyDetails("", element("summary", {}, title), () =>
    blocks.map(([value, label]) => copyable(jsonBlock(value, label), `Copy ${label.toLowerCase()}`))
  );

/**
 * Show an item in the detail view, fill in values, and record its runs.
 *
 * @param {string} kind
 * @param {Json} item
 * @param {Json | null} values
 * @param {Omit<Work, "send"> & Partial<Work>} work
 */
export function show(kind, item, values, work) {
  if (values) work.form?.write(values);
  const name = links.idOf(kind, item);
  /** @param {Json} given */
  const kept = (given) => withoutSecrets(given, item.inputSchema);
  /** @param {Json} given @param {Json} outcome */
  const done = (given, { text, good, ms }) =>
    remember({ kind, name, values: given, kept: kept(given), text, good, ms });
  /** @param {any} error @param {Json} given */
  const remedy = (error, given) =>
    session.via && asksToSignIn(error) ? signInCard(session.via, error, links.write(kind, name, kept(given))) : null;
  const reset =
    work.form && !work.form.empty
      ? () => {
          forget(kind, name);
          page.redo();
        }
      : null;
  /** @type {Work["save"]} */
  const save =
    kind === "server"
      ? null
      : (given, last) => keep({ kind, from: name, values: kept(given), ...work.request(kept(given)) }, last);
  return bench({ copies: copiesOf(kind, item, kept), done, remedy, reset, save, send: request, ...work });
}
