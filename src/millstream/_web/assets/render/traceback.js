// A Python traceback: the exception, and the line of code that raised it.

import { element, fold, pre } from "../dom.js";
import { copyable } from "../shell/copy.js";

const PLACE = /^ {2}File "([^"\n]+)", line (\d+)(?:, in ([^\n]+))?(?:\n {4}([^\n]+))?/gm;

/** Parse a traceback; null if the text isn't one. */
export function parseTraceback(text) {
  if (!/^\s*(Traceback \(most recent call last\)|\s*\+ Exception Group Traceback)/.test(text)) return null;
  const last = [...text.matchAll(PLACE)].at(-1);
  const raised = text
    .trimEnd()
    .split("\n")
    .findLast((line) => /^\S/.test(line));
  if (!last || !raised) return null;
  const [, file, line, where = "", code = ""] = last;
  return { raised, file, line: Number(line), where, code };
}

/** Render a traceback; null if the text isn't one. */
export function traceback(text) {
  const found = parseTraceback(text);
  if (!found) return null;
  const { raised, file, line, where, code } = found;
  const name = file.split(/[/\\]/).at(-1);
  const whole = copyable(pre("Traceback", text), "Copy the traceback");
  const source = code
    ? element(
        "pre",
        { className: "source-line", tabIndex: 0, "aria-label": `Line ${line} of ${name}`, dir: "ltr" },
        element("span", "soft", `${line}  `),
        code
      )
    : null;
  return element(
    "section",
    { className: "traceback", "aria-label": "Where it failed" },
    element("p", { className: "raised", dir: "auto" }, raised),
    element(
      "p",
      "small",
      element("code", { title: file }, `${name}:${line}`),
      where && where !== "<module>" ? element("span", "soft", ` in ${where}`) : ""
    ),
    source,
    fold("Traceback", whole)
  );
}
