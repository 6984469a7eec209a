// Collapsible groups for long lists: by the first tag of each item, or by the first word of its name that isn't a verb.

/** @typedef {{group: string, size: number, closed: boolean}} Head the heading row of a group */

const MIN_ITEMS = 12; // shorter lists aren't grouped
const WORDS = /[A-Z]?[a-z0-9]+|[A-Z0-9]+/g;
const VERBS = new Set(
  "add cancel check close create delete describe edit fetch find get list make merge move open put read remove rename run search send set show start stop update upload write".split(
    " "
  )
);
const OTHER = "Other";

/** Return what a name is about: `issue` for `list_issues` and `getIssue`. */
function prefixOf(name) {
  const words = (name.match(WORDS) ?? []).map((word) => word.toLowerCase());
  if (words.length < 2) return "";
  return VERBS.has(words[0]) ? words[1].replace(/(?<![sui])s$/, "") : words[0];
}

/**
 * Return the items by group, ordered by the groups' names; null if groups wouldn't help.
 *
 * @template T
 * @param {T[]} items
 * @param {(item: T) => string} nameOf
 * @param {(item: T) => string[]} tagsOf
 * @returns {Map<string, T[]> | null}
 */
export function groupItems(items, nameOf, tagsOf = () => []) {
  if (items.length < MIN_ITEMS) return null;
  const prefixes = new Map();
  for (const item of items)
    if (!tagsOf(item).length) prefixes.set(prefixOf(nameOf(item)), (prefixes.get(prefixOf(nameOf(item))) ?? 0) + 1);
  const groups = new Map();
  for (const item of items) {
    const prefix = prefixOf(nameOf(item));
    const group = tagsOf(item)[0] ?? (prefix && prefixes.get(prefix) > 1 ? prefix : OTHER);
    groups.set(group, [...(groups.get(group) ?? []), item]);
  }
  if (groups.size < 2 || groups.size > items.length / 2) return null;
  return new Map(
    [...groups].sort(([one], [other]) => Number(one === OTHER) - Number(other === OTHER) || one.localeCompare(other))
  );
}

const MAX_OPEN_ITEMS = 60; // groups of longer lists start closed

/**
 * Return the items with a heading row above each group, without the items of closed groups.
 *
 * @template T
 * @param {Map<string, T[]>} groups
 * @param {Map<string, boolean>} chosen group -> whether the user opened or closed it
 * @param {{current?: T, all?: boolean}} options the group of `current` starts open; `all` opens every group
 * @returns {Array<T | Head>}
 */
export function withHeads(groups, chosen, { current, all = false }) {
  const many = [...groups.values()].reduce((sum, items) => sum + items.length, 0) > MAX_OPEN_ITEMS;
  return [...groups].flatMap(([group, items]) => {
    const open = all || (chosen.get(group) ?? (!many || items.includes(current)));
    return [{ group, size: items.length, closed: !open }, ...(open ? items : [])];
  });
}

/** Return the tags of an item. Servers use different keys of `_meta` for them. */
export function tagsOf(item) {
  for (const [key, value] of Object.entries(item._meta ?? {})) {
    const tags = /(^|\/)tags$/.test(key) ? value : value?.tags;
    if (Array.isArray(tags) && tags.length && tags.every((tag) => typeof tag === "string")) return tags;
  }
  return [];
}
