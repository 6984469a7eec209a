// Icons of `icons.svg`, in the color of the text around them.

const SVG = "http://www.w3.org/2000/svg";

/** The icon of that name. It says nothing to a screen reader: the control around it has the name. */
export function icon(name) {
  const made = document.createElementNS(SVG, "svg");
  made.setAttribute("class", "icon");
  made.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `assets/icons.svg#${name}`);
  made.append(use);
  return made;
}

/** Show another icon in its place. */
export const swap = (made, name) => made.firstChild.setAttribute("href", `assets/icons.svg#${name}`);
