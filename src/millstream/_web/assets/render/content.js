// Content blocks of MCP as a person reads them: text, Markdown, JSON, pictures, sound, resources. Whatever comes from
// the server is set as text, and pictures and sound are shown from the data themselves.

import { element, pretty } from "../dom.js";
import { copyable } from "../shell/copy.js";
import { icon } from "../shell/icons.js";
import { colored } from "./json.js";
import { looksLike, markdown } from "./markdown.js";
import { rowTable, rowsOf } from "./rows.js";
import { traceback } from "./traceback.js";
import { views } from "./views.js";

const MAX_RENDERED = 50_000;
const FRONTMATTER = /^---\r?\n[^]*?\r?\n---\r?\n/; // only the source shows it

const block = (text, label, nodes = [text], dir = "auto") => copyable(element("pre", { className: "wrap", tabIndex: 0, "aria-label": label, dir }, ...nodes), `Copy ${label.toLowerCase()}`, () => text);

/** JSON in order, or null where the text is something else. */
function tidy(text) {
  if (!/^\s*[[{]/.test(text)) return null;
  try {
    return pretty(JSON.parse(text));
  } catch {
    return null;
  }
}

/** Something that may be looked at in several ways. */
function several(...ways) {
  const { node, bar } = views(ways);
  return element("div", { className: "stack tight" }, bar, node);
}

const rendered = (text, label) =>
  several(["Rendered", () => element("div", { className: "markdown", dir: "auto", role: "group", "aria-label": label }, ...markdown(text.replace(FRONTMATTER, "")))], ["Source", () => block(text, label)]);

/** Text, as Markdown where it is or looks like it, as JSON where it is that. */
function prose(text, label, mimeType = "") {
  const json = tidy(text);
  if (json !== null) {
    const rows = rowsOf(JSON.parse(json));
    const plain = () => block(json, label, colored(json), "ltr");
    return [rows ? several(["Table", () => rowTable(rows)], ["JSON", plain]) : plain()];
  }
  const failure = mimeType ? null : traceback(text);
  if (failure) return [failure];
  const wanted = /markdown/.test(mimeType) || (!mimeType && looksLike(text));
  return [wanted && text.length <= MAX_RENDERED ? rendered(text, label) : block(text, label)];
}

function file(data, mimeType, label) {
  const type = /^[\w.+-]+\/[\w.+-]+$/.test(mimeType ?? "") ? mimeType : "application/octet-stream";
  const size = Math.floor((data.length * 3) / 4) - (data.match(/=*$/)?.[0].length ?? 0);
  const link = element("a", { className: "button", href: `data:${type};base64,${data}`, download: `${label}.${type.split("/")[1].replace(/\W.*/, "")}` }, icon("download"), `Save ${label}`);
  return element("p", { className: "row" }, link, element("span", { className: "soft small" }, `${type}, ${size.toLocaleString()} bytes`));
}

function binary(data, mimeType, label) {
  const source = `data:${mimeType};base64,${data}`;
  if (/^image\/[\w.+-]+$/.test(mimeType ?? "")) return [element("img", { src: source, alt: `${label} (${mimeType})` })];
  if (/^audio\/[\w.+-]+$/.test(mimeType ?? "")) return [element("audio", { src: source, controls: true, "aria-label": label }), file(data, mimeType, "audio")];
  return [file(data, mimeType, "file")];
}

const resource = (found) => (found.blob !== undefined ? binary(found.blob, found.mimeType, found.uri) : prose(found.text ?? "", found.uri, found.mimeType));

const about = (...words) => element("p", { className: "soft small about" }, words.filter(Boolean).join(", "));

/** A link to a resource, which `read(uri)` follows. */
function link(content, read) {
  const follow = element("button", { type: "button" }, icon("link"), element("span", { className: "one-line" }, `Read ${content.uri}`));
  follow.addEventListener("click", () => read(content.uri));
  const said = [content.title ?? content.name, content.description, content.mimeType, content.size && `${content.size.toLocaleString()} bytes`];
  return [element("div", { className: "resource-link" }, about(...said), follow)];
}

const BLOCKS = {
  text: ({ text }) => prose(text, "Text"),
  image: ({ data, mimeType }) => binary(data, mimeType, "Image of the result"),
  audio: ({ data, mimeType }) => binary(data, mimeType, "Audio of the result"),
  resource: ({ resource: found }) => [about(found.uri, found.mimeType), ...resource(found)],
  resource_link: link,
};

/** Who a block is for, and how much it matters. */
function notes({ annotations = {} }) {
  const words = [annotations.audience && `for ${annotations.audience.join(" and ")}`, annotations.priority !== undefined && `priority ${annotations.priority}`, annotations.lastModified && `changed ${annotations.lastModified}`];
  return words.some(Boolean) ? [about(...words)] : [];
}

/** The nodes for one content block. `read(uri)` is called where a link to a resource is followed. */
export function nodes(content, read) {
  const draw = BLOCKS[content?.type];
  return draw ? [...notes(content), ...draw(content, read)] : [block(pretty(content), content?.type ?? "Content")];
}

/** The nodes for the contents of a resource. */
export const contents = (list) => list.flatMap((each) => [about(each.uri, each.mimeType), ...resource(each)]);
