// Sign-in to another server: the card that asks for it, and the account dialog. This page's server handles the redirects
// and stores the tokens; the page never receives them.

import {
  $,
  element,
  fact,
  fold,
  icon,
  labeled,
  makeButton,
  onSubmit,
  openDialog,
  post,
  store,
  stored,
  textInput
} from "../dom.js";
import { httpError } from "../mcp/transports.js";
import { toast } from "../shell/controls.js";
import { forgetKey, openSettings } from "./settings.js";

/** @typedef {import("./session.js").Server} Server */

const AWAY = "millstream.inspect.away"; // the place before the sign-in redirect

/** Whether signing in, or requesting more scopes, would resolve an error from another server. @param {any} error */
export const asksToSignIn = ({ status, challenge }) =>
  status === 401 || (status === 403 && challenge.includes("insufficient_scope"));

/** @param {{challenge: string}} error */
const scopesOf = ({ challenge }) => (/\bscope="([^"]*)"/.exec(challenge)?.[1] ?? "").split(" ").filter(Boolean);
/** @param {{name: string}} server */
const route = ({ name }) => `inspect/sign-in/${encodeURIComponent(name)}`;
/** @param {string[]} scopes */
const scopeList = (scopes) => element("ul", "scopes", ...scopes.map((each) => element("li", "badge", each)));

let made = 0;

/** @returns {[HTMLInputElement, HTMLElement]} @param {string} title @param {string} hint */
function field(title, hint, properties = {}) {
  const id = `sign-in-${++made}`;
  const input = textInput({ id, ...properties });
  return [input, labeled(title, input, ...(hint ? [element("span", "hint", hint)] : []))];
}

/**
 * Get the sign-in URL, and navigate to it. Rejects if there's none.
 *
 * @param {Server} server
 * @param {Json} wanted
 * @param {string} hash
 */
async function leave(server, wanted, hash) {
  const response = await post(route(server), wanted);
  if (!response.ok) throw await httpError(response);
  const { url } = await response.json();
  if (!/^https?:$/.test(new URL(url).protocol)) throw new Error("The server's sign-in address isn't a web address.");
  forgetKey();
  store("session", AWAY, { name: server.name, hash });
  location.assign(url);
}

/** @type {(error: Error) => void} */
const ignore = () => {};

/**
 * Redirect when a form is submitted. `wanted()` returns the request, and errors are shown in `wrong`.
 *
 * @param {HTMLFormElement} form
 * @param {HTMLElement} go
 * @param {HTMLElement} wrong
 * @param {Server} server
 * @param {() => Json} wanted
 * @param {string} hash
 */
function leads(form, go, wrong, server, wanted, hash, failed = ignore) {
  onSubmit(form, async () => {
    if (go.ariaDisabled === "true") return;
    go.ariaDisabled = "true";
    wrong.hidden = true;
    try {
      await leave(server, wanted(), hash);
    } catch (/** @type {any} */ error) {
      wrong.textContent =
        error.name === "TypeError" ? "This page's server can't be reached. Try again when it's back." : error.message;
      wrong.hidden = false;
      failed(error);
    }
    go.ariaDisabled = null;
  });
}

/**
 * Create the card that asks the user to sign in.
 *
 * @param {Server} server
 * @param {import("../mcp/transports.js").HttpError | import("../mcp/transports.js").RpcError} error the server's error
 * @param {string} hash place to open afterwards
 */
export function signInCard(server, error, hash) {
  const more = error.status === 403;
  const asked = scopesOf(error);
  const missing = asked.filter((each) => !server.signed_in?.scopes.includes(each));
  const scopes = more && missing.length ? missing : asked;
  const [client, clientField] = field("Client ID", "");
  const [secret, secretField] = field("Client secret", "Only if the client has one.", { type: "password" });
  const [scope, scopeField] = field(
    "Scopes",
    "Separate scopes by spaces. Leave this empty to request what the server suggests."
  );
  const wrong = element("p", { className: "notice bad", role: "alert", hidden: true });
  const go = element(
    "button",
    { type: "submit", className: "primary" },
    icon("person"),
    more ? "Sign in again" : "Sign in"
  );
  const key = makeButton("quiet", () => openSettings("key"), "Use a key or token");
  const callback = new URL("inspect/callback", document.baseURI).href;
  const own = fold(
    "Sign in as a client of your own",
    element(
      "div",
      "stack tight",
      element(
        "p",
        "soft small",
        "You need this only if the inspector can't register itself. Register a client with the redirect URI ",
        element("code", {}, callback),
        "."
      ),
      element("div", "fields", clientField, secretField, scopeField)
    )
  );
  const title = more
    ? "This needs more scopes"
    : server.signed_in
      ? "Your sign-in has ended"
      : "This server asks you to sign in";
  const why = more
    ? "You're signed in, but without the scopes that this needs. Sign in again to request them. You return to this form."
    : "You sign in on the server's own page, and then return here. The tokens stay on this page's server; no page sees them.";
  const form = element(
    "form",
    { className: more ? "stack asks" : "card stack asks", "aria-label": title, noValidate: true },
    element(
      "header",
      "stack tight",
      element(more ? "h3" : "h2", {}, title),
      more ? null : element("p", "sub code soft", server.url)
    ),
    element("p", {}, why),
    ...(scopes.length
      ? [
          element(
            "div",
            "stack tight",
            element(more ? "p" : "h3", {}, more ? "It needs:" : "What it asks for"),
            scopeList(scopes)
          )
        ]
      : []),
    wrong,
    element("div", "row actions", go, more ? null : key),
    more ? null : own
  );
  const wanted = () => ({
    status: error.status,
    challenge: error.challenge,
    client_id: client.value,
    client_secret: secret.value,
    scope: scope.value
  });
  leads(form, go, wrong, server, wanted, hash, ({ message }) => (own.open ||= message.includes("redirect URI")));
  return form;
}

/** Return the place before the sign-in redirect, once: `{name, hash}`; null if there was none. */
export function back() {
  const kept = stored("session", AWAY);
  store("session", AWAY, null);
  return kept;
}

/** Return the text for a signed-in user. @param {Json} user */
export const asWhom = ({ who }) => (who ? `Signed in as ${who}` : "Signed in");

/** @param {Server} server @param {() => void} done */
async function signOut(server, done) {
  try {
    const response = await fetch(route(server), { method: "DELETE" });
    if (!response.ok) throw await httpError(response);
    const { revoked } = await response.json();
    toast(
      revoked
        ? "Signed out. The tokens are revoked."
        : "Signed out. The tokens were deleted here, but couldn't be revoked.",
      "good"
    );
  } catch (/** @type {any} */ error) {
    toast(error.name === "TypeError" ? "This page's server can't be reached." : error.message, "bad");
  }
  done();
}

/** @param {Server} server @param {() => void} done */
function openAccount(server, done) {
  const { who, issuer, scopes } = server.signed_in ?? {};
  const [more, moreField] = field(
    "Ask for more scopes",
    "Separate scopes by spaces. Lists often leave out what you may not use.",
    { required: true }
  );
  const wrong = element("p", { className: "notice bad", role: "alert", hidden: true });
  const close = makeButton("", () => dialog.close(), "Close");
  const out = makeButton(
    "quiet",
    () => {
      dialog.close();
      signOut(server, done);
    },
    "Sign out"
  );
  const go = element("button", { type: "submit" }, "Sign in again");
  const place = element("div", "with-button");
  more.replaceWith(place);
  place.append(more, go);
  const form = element("form", "stack tight", moreField, wrong);
  const dialog = openDialog(
    { id: "account", "aria-labelledby": "account-title" },
    element(
      "div",
      "stack",
      element("h2", { id: "account-title" }, who ? `Signed in as ${who}` : "Signed in"),
      element("dl", "facts", fact("Server", server.url), fact("By", issuer)),
      element(
        "div",
        "stack tight",
        element("h3", {}, "Scopes"),
        scopes.length ? scopeList(scopes) : element("p", "soft", "The server hasn't said which.")
      ),
      form,
      element("div", "row end", out, close)
    )
  );
  leads(form, go, wrong, server, () => ({ status: 403, scope: more.value }), location.hash);
  close.focus();
}

/**
 * Show the signed-in user in the toolbar; `done` is called after sign-out.
 *
 * @param {Server | null} server
 * @param {() => void} done
 */
export function showAccount(server, done) {
  const user = server?.signed_in;
  const button = $("account-button");
  button.hidden = !user;
  if (!server || !user) return;
  button.title = asWhom(user);
  button.ariaLabel = button.title;
  button.replaceChildren(icon("person"), element("span", "wide-only one-line", user.who || "Signed in"));
  button.onclick = () => openAccount(server, done);
}
