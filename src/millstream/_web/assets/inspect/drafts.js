// Forms as a person left them: as long as the page lives, a thing that is opened again has what was typed there, half a
// value and the wrong ones included. After that, it has what was sent last in this tab.

import { lastSent } from "./history.js";
import { session } from "./session.js";

const KEPT = 100;

/** @type {Map<string, {form: object, shape: string} | null>} the one opened last is the last; null where it begins anew */
const drafts = new Map();

const keyOf = (kind, name) => JSON.stringify([session.via?.url ?? "", kind, name]);

function read(form) {
  try {
    return form.values();
  } catch {
    return null; // Half a value has no place in another form.
  }
}

/**
 * The form of a thing: the one that a person has seen, or a new one.
 *
 * @param {string} kind
 * @param {string} name
 * @param {unknown} about what the form is made from: a form of another shape only gives its values
 * @param {() => object} make
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

/** Let the form of a thing begin anew, with its defaults. */
export const forget = (kind, name) => drafts.set(keyOf(kind, name), null);
