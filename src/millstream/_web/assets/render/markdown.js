// Markdown as nodes. markdown-it parses (CommonMark, tables, strikethrough), and each token becomes an element whose
// content is set as text, so it can't contain markup. Raw HTML is shown as text, and images become links. Texts that would
// take too long are shown as they are.

import MarkdownIt from "../vendor/markdown-it.js";
import { element, pre } from "../dom.js";

const MAX_TEXT = 50_000; // characters
const MAX_TOKENS = 20_000;
const MAX_DELIMITERS = 400; // of a paragraph; emphasis nests half as deep, and the time grows with the square

const parser = new MarkdownIt({ html: false, linkify: true, maxNesting: 20 });
parser.inline.ruler2.before("balance_pairs", "limit_delimiters", (/** @type {Json} */ state) => {
  for (const each of [state, ...state.tokens_meta]) if (each?.delimiters?.length > MAX_DELIMITERS) each.delimiters = [];
});

const OWN_DIRECTION = new Set(["paragraph_close", "list_item_close"]);
/** @type {Record<string, string>} */
const TAGS = {
  strong: "strong",
  em: "em",
  s: "s",
  blockquote: "blockquote",
  bullet_list: "ul",
  list_item: "li",
  thead: "thead",
  tbody: "tbody",
  tr: "tr",
  td: "td"
};

/** Whether an address may become a link: web pages and mail. Others are shown as text. @param {string} address */
const isSafe = (address) => /^(https?:|mailto:)/i.test(address);

/** @param {string} address @param {...Child} children */
function anchor(address, ...children) {
  if (!isSafe(address)) return element("span", { title: address }, ...children);
  return element("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, ...children);
}

/** Create the element for an opening token. @param {Json} token */
function createElement(token) {
  const kind = token.type.replace(/_open$/, "");
  if (kind === "paragraph") return element("p");
  if (kind === "heading") {
    const level = Number(token.tag.slice(1));
    return element("p", {
      className: `heading level-${level}`,
      role: "heading",
      "aria-level": String(Math.min(6, level + 2))
    });
  }
  if (kind === "ordered_list")
    return element("ol", token.attrGet("start") ? { start: Number(token.attrGet("start")) } : {});
  if (kind === "table") return element("table");
  if (kind === "th") return element("th", { scope: "col" });
  if (kind === "link") return anchor(token.attrGet("href") ?? "");
  return element(TAGS[kind] ?? "span");
}

/** Return the node or text for a token without children. @param {Json} token */
function leaf(token) {
  if (token.type === "code_inline") return element("code", {}, token.content);
  if (token.type === "fence" || token.type === "code_block") {
    return pre(token.info.trim().split(/\s/)[0] || "Code", token.content.replace(/\n$/, ""));
  }
  if (token.type === "hr") return element("hr");
  if (token.type === "hardbreak") return element("br");
  if (token.type === "softbreak") return "\n";
  if (token.type === "image") return anchor(token.attrGet("src") ?? "", token.content || (token.attrGet("src") ?? ""));
  return token.content;
}

/** @param {Json[]} tokens */
function nodes(tokens) {
  const root = document.createDocumentFragment();
  /** @type {Array<any>} */
  const open = [root];
  for (const token of tokens) {
    const top = open[open.length - 1];
    if (token.nesting === 1) {
      // Paragraphs of a tight list are hidden tokens.
      const made = token.hidden ? top : createElement(token);
      if (!token.hidden)
        top.append(
          token.type === "table_open"
            ? element("div", { className: "scroll", tabIndex: 0, role: "group", "aria-label": "Table" }, made)
            : made
        );
      open.push(made);
    } else if (token.nesting === -1) {
      const made = open.pop();
      if (!token.hidden && OWN_DIRECTION.has(token.type)) made.dir = "auto"; // after its content, see `element`
    } else if (token.type === "inline") top.append(...nodes(token.children));
    else top.append(leaf(token));
  }
  return [...root.childNodes];
}

/**
 * @param {string} text
 * @param {(text: string) => Json[]} parse
 * @param {() => Array<Node | string>} plain
 * @returns {any[]}
 */
function render(text, parse, plain) {
  if (text.length > MAX_TEXT) return plain();
  const tokens = parse(text);
  return tokens.reduce((sum, { children }) => sum + 1 + (children?.length ?? 0), 0) > MAX_TOKENS
    ? plain()
    : nodes(tokens);
}

/** @type {(text: string) => Array<Node | string>} the nodes of a single line */
export const inline = (text) =>
  render(
    text,
    (given) => parser.parseInline(given, {}),
    () => [text]
  );

/** @type {(text: string) => HTMLElement[]} the blocks of a text */
export const markdown = (text) =>
  render(
    text,
    (given) => parser.parse(given, {}),
    () => [element("p", { dir: "auto" }, text)]
  );

/** Create a block of Markdown. @param {string} text */
export const markdownBlock = (text, properties = {}) =>
  element("div", { className: "markdown", dir: "auto", ...properties }, ...markdown(text));

/** Whether a text looks like Markdown. @param {string} text */
export const looksLikeMarkdown = (text) =>
  /^ {0,3}(#{1,6}\s|```|~~~|[-*+]\s+\S|\d{1,9}[.)]\s+\S)|^[ \t]*(?:\|[ \t]*)?:?-+:?[ \t]*\|/m.test(text) ||
  /\*\*\S[^*\n]*\*\*|\[[^[\]\n]+\]\(https?:/.test(text);
