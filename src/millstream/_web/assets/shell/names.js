// Names in lists: without what the heading of their group says, and shortened where others have the same words, so that
// each can be told from the others. The left out text stays in the document, for screen readers, searches, and copies.

import { element, labelOf } from "../dom.js";

const MAX_CHARACTERS = 40; // two lines of the narrowest list, which may break early
const WORDS = /[^\p{L}\p{M}\p{N}]*[\p{L}\p{M}\p{N}]{1,12}|[^\p{L}\p{M}\p{N}]+$/gu; // with the separators before them
const MAX_SAID = 100; // of a group's heading

/** @typedef {{start: string, words: string[], shown: Set<number>}} Entry a name, and the places of the words to show */

/** Show the words in which names differ that have the same words before them. @param {Entry[]} entries */
function showDifferences(entries) {
  let alike = [entries];
  for (let at = 0; alike.length; at += 1)
    alike = alike.flatMap((some) => {
      const groups = Map.groupBy(some, ({ words }) => words[at]);
      if (groups.size > 1) for (const { shown } of some) shown.add(at);
      return [...groups].flatMap(([word, same]) => (word && same.length > 1 ? [same] : []));
    });
}

/**
 * Return a function for each name that makes the nodes to show.
 *
 * @param {string[]} names of one group
 * @param {string} [group] the heading above them
 */
export function shortNames(names, group = "") {
  const said = group
    .slice(0, MAX_SAID)
    .match(/[\p{L}\p{M}\p{N}]+/gu)
    ?.join("[^\\p{L}\\p{M}\\p{N}]*");
  const entries = names.map((name) => {
    const found = (said && new RegExp(`^${said}[^\\p{L}\\p{M}\\p{N}]+`, "iu").exec(name)?.[0]) || "";
    const start = found.length < name.length ? found : "";
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
 * Return the label of each item: its title, or its name if the title says no more. If another item has the same, its id
 * follows.
 *
 * @param {Json[]} items
 * @param {(item: Json) => string} idOf
 * @returns {Map<Json, string>}
 */
export function labelsOf(items, idOf) {
  return new Map(
    [...Map.groupBy(items, labelOf)].flatMap(([label, same]) =>
      same.map((item) => [item, same[1] ? `${label} · ${idOf(item)}` : label])
    )
  );
}
