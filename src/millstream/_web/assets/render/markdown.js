// Markdown as nodes: headings, lists, tables, quotes, code, emphasis, links. Everything is set as text, so nothing of
// it can be markup; raw HTML is shown as it is written, and pictures become links.

import { element } from "../dom.js";

const INLINE = /(`+)([\s\S]*?[^`])\1(?!`)|!?\[([^\]]*)\]\(\s*<?((?:[^\s()<>]|\([^\s()<>]*\))+)>?(?:\s+"[^"]*")?\s*\)|(\*\*|__)(?=\S)([\s\S]*?\S)\5|([*_])(?=\S)([\s\S]*?\S)\7(?!\w)|~~(?=\S)([\s\S]*?\S)~~|<(https?:[^\s>]+)>|\b(https?:\/\/[^\s<>()]*[^\s<>().,:;!?'"])/;
const MAX_DEPTH = 12;

/** An address that may be followed: pages, mail, and places in this server's own world are told as text. */
const safe = (address) => /^(https?:|mailto:)/i.test(address);

function anchor(address, ...children) {
  if (!safe(address)) return element("span", { title: address }, ...children);
  return element("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, ...children);
}

/** The nodes of one line of text. */
export function inline(text, depth = 0) {
  const nodes = [];
  let rest = text;
  while (rest && depth < MAX_DEPTH) {
    const found = INLINE.exec(rest);
    if (!found) break;
    if (found.index) nodes.push(rest.slice(0, found.index));
    const [all, , code, label, address, , strong, , emphasis, struck, bracketed, bare] = found;
    const below = (inner) => inline(inner, depth + 1);
    if (code !== undefined) nodes.push(element("code", {}, code.trim()));
    else if (address !== undefined) nodes.push(anchor(address, ...below(label || address)));
    else if (strong !== undefined) nodes.push(element("strong", {}, ...below(strong)));
    else if (emphasis !== undefined) nodes.push(element("em", {}, ...below(emphasis)));
    else if (struck !== undefined) nodes.push(element("s", {}, ...below(struck)));
    else nodes.push(anchor(bracketed ?? bare, bracketed ?? bare));
    rest = rest.slice(found.index + all.length);
  }
  if (rest) nodes.push(rest);
  return nodes;
}

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ROW = /^\s*\|?(.+\|.*)$/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

/** Whether a text looks as if it were meant as Markdown. */
export const looksLike = (text) => text.split("\n").some((line) => HEADING.test(line) || FENCE.test(line) || /^\s*([-*+]|\d+[.)])\s+\S/.test(line) || DIVIDER.test(line.includes("|") ? line : "")) || /\*\*\S[^*]*\*\*|\[[^\]]+\]\(https?:/.test(text);

/** The nodes of a text. */
export function markdown(text, depth = 0) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const nodes = [];
  let at = 0;
  const take = (test) => {
    const taken = [];
    while (at < lines.length && test(lines[at])) taken.push(lines[at++]);
    return taken;
  };
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    if (!line.trim()) at += 1;
    else if (fence) {
      at += 1;
      const body = take((each) => !each.trim().startsWith(fence[1]));
      at += 1;
      nodes.push(element("pre", { tabIndex: 0, "aria-label": fence[2] || "Code", dir: "ltr" }, body.join("\n")));
    } else if (heading) {
      at += 1;
      nodes.push(element("p", { className: `heading level-${heading[1].length}`, role: "heading", "aria-level": String(Math.min(6, heading[1].length + 2)) }, ...inline(heading[2])));
    } else if (RULE.test(line)) {
      at += 1;
      nodes.push(element("hr"));
    } else if (QUOTE.test(line)) {
      const body = take((each) => QUOTE.test(each)).map((each) => each.replace(QUOTE, ""));
      nodes.push(element("blockquote", {}, ...(depth < MAX_DEPTH ? markdown(body.join("\n"), depth + 1) : [body.join("\n")])));
    } else if (ITEM.test(line)) nodes.push(items(lines, () => at, (next) => (at = next), depth));
    else if (ROW.test(line) && DIVIDER.test(lines[at + 1] ?? "") && lines[at + 1].includes("-")) {
      const head = cells(line);
      at += 2;
      const rows = take((each) => each.trim() && each.includes("|")).map(cells);
      nodes.push(table(head, rows));
    } else {
      const body = take((each) => each.trim() && !FENCE.test(each) && !HEADING.test(each) && !QUOTE.test(each) && !ITEM.test(each) && !RULE.test(each));
      if (!body.length) body.push(lines[at++]);
      nodes.push(element("p", { dir: "auto" }, ...body.flatMap((each, index) => [...(index ? [/ {2}$|\\$/.test(body[index - 1]) ? element("br") : "\n"] : []), ...inline(each.replace(/\\$/, "").trimEnd())])));
    }
  }
  return nodes;
}

function items(lines, now, go, depth) {
  const [, , mark] = ITEM.exec(lines[now()]);
  const ordered = /\d/.test(mark);
  const made = element(ordered ? "ol" : "ul", ordered && parseInt(mark, 10) !== 1 ? { start: parseInt(mark, 10) } : {});
  while (now() < lines.length) {
    const found = ITEM.exec(lines[now()]);
    if (!found || /\d/.test(found[2]) !== ordered) break;
    const body = [found[3]];
    const indent = found[1].length + 2;
    go(now() + 1);
    while (now() < lines.length && (lines[now()].trim() === "" ? /^\s{2,}\S/.test(lines[now() + 1] ?? "") : lines[now()].search(/\S/) >= indent)) {
      body.push(lines[now()].slice(Math.min(indent, Math.max(0, lines[now()].search(/\S/)))));
      go(now() + 1);
    }
    const inner = depth < MAX_DEPTH && body.length > 1 ? markdown(body.join("\n"), depth + 1) : inline(body.join(" "));
    made.append(element("li", { dir: "auto" }, ...inner));
  }
  return made;
}

function table(head, rows) {
  const line = (row, tag) => element("tr", {}, ...head.map((_, index) => element(tag, tag === "th" ? { scope: "col" } : {}, ...inline(row[index] ?? ""))));
  return element("div", { className: "scroll", tabIndex: 0, role: "group", "aria-label": "Table" }, element("table", {}, element("thead", {}, line(head, "th")), element("tbody", {}, ...rows.map((row) => line(row, "td")))));
}
