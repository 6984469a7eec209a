// Renders MCP content blocks: text, Markdown, JSON, images, audio, and resources. Data from the server is set as text;
// images and audio are shown from data URLs.

import { looksLikeMarkdown, markdownBlock } from "./markdown.js";
import { element, icon, makeButton, pretty, wrapped } from "../dom.js";
import { copyable } from "../shell/copy.js";
import { colored } from "./json.js";
import { rowTable, rowsOf } from "./rows.js";
import { traceback } from "./traceback.js";
import { views } from "./views.js";

const MAX_RENDERED = 50_000;
const FRONTMATTER = /^---\r?\n[\s\S]*?\r?\n---\r?\n/; // only shown in the source view

const block = (text, label, nodes = [text], dir = "auto") =>
  copyable(wrapped(label, dir, ...nodes), `Copy ${label.toLowerCase()}`, () => text);

/** Return indented JSON, or null if the text isn't JSON. */
function formatJson(text) {
  if (!/^\s*[[{]/.test(text)) return null;
  try {
    return pretty(JSON.parse(text));
  } catch {
    return null;
  }
}

/** Create an element with several views and their buttons. */
function withViews(...entries) {
  const { node, bar } = views(entries);
  return element("div", "stack tight", bar, node);
}

const renderMarkdown = (text, label) =>
  withViews(
    ["Rendered", () => markdownBlock(text.replace(FRONTMATTER, "", { role: "group", "aria-label": label }))],
    ["Source", () => block(text, label)]
  );

/** Render text as JSON, a traceback, Markdown, or plain text, whichever it looks like. */
function renderText(text, label, mimeType = "") {
  const json = formatJson(text);
  if (json !== null) {
    const rows = rowsOf(JSON.parse(json));
    const plain = () => block(json, label, colored(json), "ltr");
    return [rows ? withViews(["Table", () => rowTable(rows)], ["JSON", plain]) : plain()];
  }
  const failure = mimeType ? null : traceback(text);
  if (failure) return [failure];
  const isMarkdown = /markdown/.test(mimeType) || (!mimeType && looksLikeMarkdown(text));
  return [isMarkdown && text.length <= MAX_RENDERED ? renderMarkdown(text, label) : block(text, label)];
}

function file(data, mimeType, label) {
  const type = /^[\w.+-]+\/[\w.+-]+$/.test(mimeType ?? "") ? mimeType : "application/octet-stream";
  const size = Math.floor((data.length * 3) / 4) - (data.match(/=*$/)?.[0].length ?? 0);
  const link = element(
    "a",
    {
      className: "button",
      href: `data:${type};base64,${data}`,
      download: `${label}.${type.split("/")[1].replace(/\W.*/, "")}`
    },
    icon("download"),
    `Save ${label}`
  );
  return element("p", "row", link, element("span", "soft small", `${type}, ${size.toLocaleString()} bytes`));
}

function binary(data, mimeType, label) {
  const source = `data:${mimeType};base64,${data}`;
  if (/^image\/[\w.+-]+$/.test(mimeType ?? "")) return [element("img", { src: source, alt: `${label} (${mimeType})` })];
  if (/^audio\/[\w.+-]+$/.test(mimeType ?? ""))
    return [element("audio", { src: source, controls: true, "aria-label": label }), file(data, mimeType, "audio")];
  return [file(data, mimeType, "file")];
}

const resource = (found) =>
  found.blob !== undefined
    ? binary(found.blob, found.mimeType, found.uri)
    : renderText(found.text ?? "", found.uri, found.mimeType);

const about = (...words) => element("p", "soft small about", words.filter(Boolean).join(", "));

/** Render a link to a resource. `read(uri)` is called when it's followed. */
function link(content, read) {
  const follow = makeButton(
    "",
    () => read(content.uri),
    icon("link"),
    element("span", "one-line", `Read ${content.uri}`)
  );
  const facts = [
    content.title ?? content.name,
    content.description,
    content.mimeType,
    content.size && `${content.size.toLocaleString()} bytes`
  ];
  return [element("div", "resource-link", about(...facts), follow)];
}

const BLOCKS = {
  text: ({ text }) => renderText(text, "Text"),
  image: ({ data, mimeType }) => binary(data, mimeType, "Image of the result"),
  audio: ({ data, mimeType }) => binary(data, mimeType, "Audio of the result"),
  resource: ({ resource: found }) => [about(found.uri, found.mimeType), ...resource(found)],
  resource_link: link
};

/** Render the annotations of a block. @param {Record<string, any>} content */
function annotationNotes({ annotations = {} }) {
  const parts = [
    annotations.audience && `for ${annotations.audience.join(" and ")}`,
    annotations.priority !== undefined && `priority ${annotations.priority}`,
    annotations.lastModified && `changed ${annotations.lastModified}`
  ];
  return parts.some(Boolean) ? [about(...parts)] : [];
}

/** Return the nodes of a content block. `read(uri)` is called when a link to a resource is followed. */
export function nodes(content, read) {
  const draw = BLOCKS[content?.type];
  return draw
    ? [...annotationNotes(content), ...draw(content, read)]
    : [block(pretty(content), content?.type ?? "Content")];
}

/** Return the nodes of the contents of a resource. */
export const contents = (list) => list.flatMap((each) => [about(each.uri, each.mimeType), ...resource(each)]);
