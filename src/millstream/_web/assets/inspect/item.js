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

export const badge = (text, look = "") => element("span", `badge ${look}`, text);

/** @type {(schema?: Record<string, any>) => Array<{title: string, text: (...given: any[]) => string}>} */
export const copies = (schema) => [
  { title: "curl", text: ({ method, params }) => curl(address(), method, params, ownHeaders(), schema) },
  { title: "Python", text: ({ method, params }) => pythonCode(address(), method, params, ownHeaders()) },
  { title: "TypeScript", text: ({ method, params }) => typescript(address(), method, params, ownHeaders()) },
  { title: "JSON", text: ({ params }) => pretty(params) }
];

/** Return the formats for copying, including a link to this page with the values but without secrets. */
const copiesOf = (kind, { name, inputSchema }, kept) => [
  ...copies(inputSchema),
  {
    title: "Link to this page",
    text: (_, values) => new URL(links.write(kind, name, kept(values)), location.href).href
  }
];

const openUri = (uri) => page.jump({ kind: "resources", name: uri, values: null });

/** Return the nodes of content blocks. Links open resources. */
export const contentNodes = (list) => list.flatMap((each) => nodes(each, openUri));

export const drawContent = (list) =>
  list.length ? contentNodes(list) : [element("p", "soft", "The result is empty.")];

/** Create collapsed blocks of JSON, rendered when they're opened. */
export const folded = (title, ...blocks) =>
  lazyDetails("", element("summary", {}, title), () =>
    blocks.map(([value, label]) => copyable(jsonBlock(value, label), `Copy ${label.toLowerCase()}`))
  );

/** Show an item in the detail view, fill in values, and record its runs. */
export function show(kind, item, values, work) {
  if (values) work.form?.write(values);
  const kept = (given) => withoutSecrets(given, item.inputSchema);
  const done = (given, { text, good, ms }) =>
    remember({ kind, name: item.name, values: given, kept: kept(given), text, good, ms });
  const remedy = (error, given) =>
    session.via && asksToSignIn(error)
      ? signInCard(session.via, error, links.write(kind, item.name, kept(given)))
      : null;
  const reset =
    work.form && !work.form.empty
      ? () => {
          forget(kind, item.name);
          page.redo();
        }
      : null;
  const save =
    kind === "server"
      ? null
      : (given, last) => keep({ kind, from: item.name, values: kept(given), ...work.request(kept(given)) }, last);
  return bench({ copies: copiesOf(kind, item, kept), done, remedy, reset, save, send: request, ...work });
}
