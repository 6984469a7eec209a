// A long list in groups: by the first tag of each item, else by what its name begins with. Groups open and close.

/** @typedef {{group: string, size: number, closed: boolean}} Head what stands above a group in the list */

const LEAST = 12; // A shorter list is seen as a whole.
const PREFIX = /^([A-Za-z0-9]+)(?=[_./:-]|[a-z](?=[A-Z]))/;
const OTHER = "Other";

const prefixOf = (name) => PREFIX.exec(name)?.[1].toLowerCase() ?? "";

/**
 * The items by group, in the order of the groups' names; null where groups would say nothing.
 *
 * @template T
 * @param {T[]} items
 * @param {(item: T) => string} nameOf
 * @param {(item: T) => string[]} tagsOf
 * @returns {Map<string, T[]> | null}
 */
export function grouped(items, nameOf, tagsOf = () => []) {
  if (items.length < LEAST) return null;
  const prefixes = new Map();
  for (const item of items) if (!tagsOf(item).length) prefixes.set(prefixOf(nameOf(item)), (prefixes.get(prefixOf(nameOf(item))) ?? 0) + 1);
  const found = new Map();
  for (const item of items) {
    const prefix = prefixOf(nameOf(item));
    const group = tagsOf(item)[0] ?? (prefix && prefixes.get(prefix) > 1 ? prefix : OTHER);
    found.set(group, [...(found.get(group) ?? []), item]);
  }
  if (found.size < 2 || found.size > items.length / 2) return null;
  return new Map([...found].sort(([one], [other]) => (one === OTHER) - (other === OTHER) || one.localeCompare(other)));
}

const ALL_OPEN = 60; // Of more items, a group is closed until somebody opens it or something in it.

/**
 * The items with a head above each group; those of a closed group are left out.
 *
 * @template T
 * @param {Map<string, T[]>} groups
 * @param {Map<string, boolean>} chosen whether a group is open, for those that a person opened or closed
 * @param {{current?: T, all?: boolean}} options the group of `current` is open by itself; `all` opens every group
 * @returns {Array<T | Head>}
 */
export function withHeads(groups, chosen, { current, all = false }) {
  const many = [...groups.values()].reduce((sum, items) => sum + items.length, 0) > ALL_OPEN;
  return [...groups].flatMap(([group, items]) => {
    const open = all || (chosen.get(group) ?? (!many || items.includes(current)));
    return [{ group, size: items.length, closed: !open }, ...(open ? items : [])];
  });
}

/** The tags of an item of MCP, wherever its server puts them into `_meta`. */
export function tagsOf(item) {
  for (const [key, value] of Object.entries(item._meta ?? {})) {
    const tags = /(^|\/)tags$/.test(key) ? value : value?.tags;
    if (Array.isArray(tags) && tags.length && tags.every((tag) => typeof tag === "string")) return tags;
  }
  return [];
}
