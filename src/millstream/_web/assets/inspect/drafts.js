// Drafts of forms. Until the page is closed, a reopened item has the entered values, even invalid ones. After a reload,
// it has the values that were last sent from this tab.

import { lastSent } from "./history.js";
import { session } from "./session.js";

const KEPT = 100;

/** @type {Map<string, {form: Record<string, any>, shape: string} | null>} in the order of use; null after a reset */
const drafts = new Map();

const keyOf = (kind, name) => JSON.stringify([session.via?.url ?? "", kind, name]);

function read(form) {
  try {
    return form.values();
  } catch {
    return null; // Invalid values don't fit another form.
  }
}

/**
 * Return the existing form of an item, or create one.
 *
 * @param {string} kind
 * @param {string} name
 * @param {unknown} about schema of the form: if it has changed, a new form gets the old values
 * @param {() => Record<string, any>} make
 */
export function draft(kind, name, about, make) {
  const key = keyOf(kind, name);
  const shape = JSON.stringify(about);
  const kept = drafts.get(key);
  const form = kept?.shape === shape ? kept.form : make();
  if (form !== kept?.form) {
    const values = kept ? read(kept.form) : kept === undefined ? lastSent(kind, name) : null;
    if (values) form.write(values);
  }
  drafts.delete(key);
  drafts.set(key, { form, shape });
  if (drafts.size > KEPT) drafts.delete(drafts.keys().next().value);
  return form;
}

/** Reset the form of an item to its defaults. */
export const forget = (kind, name) => drafts.set(keyOf(kind, name), null);
