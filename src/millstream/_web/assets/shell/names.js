// Names in lists: without what the heading of their group says, and shortened where others have the same words, so that
// each can be told from the others. The left out text stays in the document, for screen readers, searches, and copies.

import { element, labelOf } from "../dom.js";

const MAX_IN_LIST = 48; // two lines of the narrowest list
const MAX_IN_TABLE = 20;
const WORDS = /[^\p{L}\p{N}]*[\p{L}\p{N}]{1,12}|[^\p{L}\p{N}]+$/gu; // with the separators before them

/** @typedef {{words: string[], needed: Set<number>}} Entry a name, and the places of the words that tell it from others */

/**
 * Mark the word in which names with the same words before `place` differ, and then the words in which those differ that
 * have this word in common.
 *
 * @param {Entry[]} entries
 * @param {number} place
 */
function markNeeded(entries, place = 0) {
  let at = place;
  while (entries.length > 1 && entries.every(({ words }) => at < words.length && words[at] === entries[0].words[at]))
    at += 1;
  if (entries.length < 2) return;
  for (const { needed } of entries) needed.add(at);
  for (const same of Map.groupBy(entries, ({ words }) => words[at]).values())
    if (at < same[0].words.length) markNeeded(same, at + 1);
}

/**
 * Return the places of the words to show: the needed ones, and what fits of the beginning and the end.
 *
 * @param {Entry} entry
 * @param {number} max
 */
function shownWords({ words, needed }, max) {
  const shown = new Set([0, ...needed]);
  let left = max - [...shown].reduce((sum, place) => sum + (words[place]?.length ?? 0) + 1, 0);
  for (let [first, last] = [1, words.length - 1]; first <= last; ) {
    const place = last > words.length - first ? last-- : first++;
    if (shown.has(place)) continue;
    left -= words[place].length;
    if (left < 0) break;
    shown.add(place);
  }
  return shown;
}

/** Return the beginning of a name that repeats its group. @param {string} name @param {string} group */
function repeated(name, group) {
  const words = group.match(/[a-z0-9]+/gi)?.join("[^a-z0-9]*");
  return (words && new RegExp(`^${words}[^a-z0-9]+`, "i").exec(name)?.[0]) || "";
}

/**
 * Return a function for each name that makes the nodes to show.
 *
 * @param {string[]} names of one group
 * @param {string} [group] the heading above them
 * @param {number} [max] the most characters to show, unless more are needed
 * @returns {Array<() => Array<Node | string>>}
 */
export function shortNames(names, group = "", max = MAX_IN_LIST) {
  const starts = names.map((name) => repeated(name, group));
  const entries = names.map((name, index) => ({
    words: name.slice(starts[index].length).match(WORDS) ?? [],
    needed: new Set()
  }));
  markNeeded(entries);
  return entries.map((entry, index) => () => {
    const start = starts[index] && element("span", "left-out", starts[index]);
    const rest = names[index].slice(starts[index].length);
    if (rest.length <= max) return [start, rest];
    const shown = shownWords(entry, max);
    /** @type {Array<Node | string>} */
    const nodes = [start];
    for (let place = 0; place < entry.words.length; ) {
      const from = place;
      const visible = shown.has(place);
      while (place < entry.words.length && shown.has(place) === visible) place += 1;
      const text = entry.words.slice(from, place).join("");
      nodes.push(visible ? text : element("span", "left-out middle", text));
    }
    return nodes;
  });
}

/** Return the functions of `shortNames` by name, for a column of a table. @param {string[]} names @param {string} [group] */
export function shortMap(names, group) {
  const made = shortNames(names, group, MAX_IN_TABLE);
  return new Map(names.map((name, index) => [name, made[index]]));
}

/**
 * Return the label of each item: its title, or its name if the title says no more. If another item has the same, its URI or
 * name follows.
 *
 * @param {Json[]} items
 * @returns {Map<Json, string>}
 */
export function labelsOf(items) {
  const counts = new Map();
  for (const item of items) counts.set(labelOf(item), (counts.get(labelOf(item)) ?? 0) + 1);
  /** @param {Json} item */
  const rest = (item) => (counts.get(labelOf(item)) > 1 ? ` · ${item.uri ?? item.uriTemplate ?? item.name}` : "");
  return new Map(items.map((item) => [item, labelOf(item) + rest(item)]));
}
