// Names in lists: without what the heading of their group says, and shortened where others have the same words, so that
// each can be told from the others. The left out text stays in the document, for screen readers, searches, and copies.

import { element, labelOf } from "../dom.js";

const MAX_CHARACTERS = 48; // two lines of the narrowest list
const WORDS = /[^\p{L}\p{N}]*[\p{L}\p{N}]{1,12}|[^\p{L}\p{N}]+$/gu; // with the separators before them

/** @typedef {{start: string, words: string[], shown: Set<number>}} Entry a name, and the places of the words to show */

/** Show the words in which names differ that have the same words before them. @param {Entry[]} entries @param {number} at */
function showDifferences(entries, at = 0) {
  const groups = Map.groupBy(entries, ({ words }) => words[at]);
  for (const [word, same] of groups) {
    if (groups.size > 1) for (const { shown } of same) shown.add(at);
    if (word && same.length > 1) showDifferences(same, at + 1);
  }
}

/**
 * Return a function for each name that makes the nodes to show.
 *
 * @param {string[]} names of one group
 * @param {string} [group] the heading above them
 */
export function shortNames(names, group = "") {
  const said = group.match(/[a-z0-9]+/gi)?.join("[^a-z0-9]*");
  const entries = names.map((name) => {
    const start = (said && new RegExp(`^${said}[^a-z0-9]+`, "i").exec(name)?.[0]) || "";
    return { start, words: name.slice(start.length).match(WORDS) ?? [], shown: new Set([0]) };
  });
  showDifferences(entries);
  return entries.map(({ start, words, shown }) => {
    let left = MAX_CHARACTERS - words.filter((_, place) => shown.has(place)).join("…").length;
    for (const [place, word] of words.entries()) {
      if (!shown.has(place)) left -= word.length;
      if (left >= 0) shown.add(place);
    }
    return () => [
      start && element("span", "left-out said", start),
      ...words.map((word, place) => element("span", shown.has(place) ? "shown" : "left-out", word))
    ];
  });
}

/**
 * Return the label of each item: its title, or its name if the title says no more. If another item has the same, its URI or
 * name follows.
 *
 * @param {Json[]} items
 * @returns {Map<Json, string>}
 */
export function labelsOf(items) {
  return new Map(
    [...Map.groupBy(items, labelOf)].flatMap(([label, same]) =>
      same.map((item) => [item, same[1] ? `${label} · ${item.uri ?? item.uriTemplate ?? item.name}` : label])
    )
  );
}
