// Content blocks of MCP as a person reads them. All of it is set as text; pictures are shown from data.

import { element, pretty } from "./dom.js";

const block = (text, label) => element("pre", { className: "wrap", tabIndex: 0, "aria-label": label }, text);

/** JSON in order, other text as it is. */
function tidy(text) {
  if (!/^\s*[[{]/.test(text)) return text;
  try {
    return pretty(JSON.parse(text));
  } catch {
    return text;
  }
}

function file(data, mimeType, label) {
  const type = /^[\w.+-]+\/[\w.+-]+$/.test(mimeType ?? "") ? mimeType : "application/octet-stream";
  const size = Math.round((data.length * 3) / 4);
  const link = element("a", { href: `data:${type};base64,${data}`, download: `${label}.${type.split("/")[1].replace(/\W.*/, "")}` }, `Save ${label}`);
  return element("p", {}, link, element("span", { className: "soft small" }, ` ${type}, ${size.toLocaleString()} bytes`));
}

function image(data, mimeType, label) {
  if (!/^image\/[\w.+-]+$/.test(mimeType ?? "")) return file(data, mimeType, label);
  return element("img", { src: `data:${mimeType};base64,${data}`, alt: label });
}

function resource(found) {
  if (found.blob !== undefined) return [(found.mimeType ?? "").startsWith("image/") ? image(found.blob, found.mimeType, found.uri) : file(found.blob, found.mimeType, "resource")];
  return [block(tidy(found.text ?? ""), found.uri)];
}

/** The nodes for one content block. `read(uri)` is called where a link to a resource is followed. */
export function nodes(content, read) {
  if (content.type === "text") return [block(tidy(content.text), "Text")];
  if (content.type === "image") return [image(content.data, content.mimeType, "Image of the result")];
  if (content.type === "audio") return [file(content.data, content.mimeType, "audio")];
  if (content.type === "resource") return [element("p", { className: "soft small" }, content.resource.uri), ...resource(content.resource)];
  if (content.type === "resource_link") {
    const follow = element("button", { type: "button", className: "quiet" }, `Read ${content.uri}`);
    follow.addEventListener("click", () => read(content.uri));
    return [follow];
  }
  return [block(pretty(content), content.type ?? "Content")];
}

/** The nodes for the contents of a resource. */
export const contents = (list) => list.flatMap((each) => [element("p", { className: "soft small" }, [each.uri, each.mimeType].filter(Boolean).join(", ")), ...resource(each)]);
