// Who is signed in: by a token that this tab keeps, else by what the browser sends. And what he may do.

import { complain, show } from "./dialogs.js";
import { Refused, forgetToken, hasToken, keepToken, request } from "./server.js";

const $ = (id) => document.getElementById(id);
const dialog = $("sign-in-dialog");

let may = new Set();
let anonymous = false;
let whenChanged = () => {};

/** Tell whether one of *rights* is given in the folder that is shown, at least to some name. */
export function allows(...rights) {
  return rights.some((right) => may.has(right));
}

/** Tell whether it is not known who asks, and that makes a difference. */
export function isAnonymous() {
  return anonymous;
}

/** Call *listener* when somebody has signed in or out. */
export function onSession(listener) {
  whenChanged = listener;
}

/** Ask what may be done in the folder *path*, and show no control for anything else. */
export async function learnRights(path, signal) {
  try {
    await ask(path, signal);
  } catch (error) {
    if (error.status !== 401 || !hasToken()) throw error;
    forgetToken();
    complain("You have been signed out", error);
    await ask(path, signal);
  }
  fit(document);
}

/** Hide what is below *root* and needs a right that is missing. */
export function fit(root) {
  for (const element of root.querySelectorAll("[data-needs]")) {
    element.hidden = !allows(...element.dataset.needs.split(" "));
  }
}

async function ask(path, signal) {
  const name = path.map((part) => part.toWellFormed()).join("/");
  const query = new URLSearchParams({ path: name });
  const { principal, rights } = await (await request("GET", `rights?${query}`, { signal })).json();
  may = new Set(rights);
  anonymous = principal?.kind === "anonymous";
  $("account").hidden = !principal;
  $("who").textContent = anonymous ? "" : (principal?.name ?? "");
  $("sign-in").hidden = !anonymous;
  $("sign-out").hidden = !hasToken();
}

async function signIn() {
  const { token } = dialog.querySelector("form").elements;
  await show(
    dialog,
    () => {},
    async () => {
      keepToken(token.value.trim());
      try {
        await request("GET", "rights?anonymous=no");
      } catch (error) {
        forgetToken();
        throw error;
      }
    },
  );
  token.value = "";
  whenChanged();
}

/** Let the browser ask for a password, as it does when credentials are missing (RFC 9110, 11.6.1). */
async function askBrowser() {
  const error = dialog.querySelector(".error");
  try {
    await request("GET", "rights?anonymous=no");
    dialog.close();
  } catch (refused) {
    if (!(refused instanceof Refused)) throw refused;
    error.textContent = refused.message;
    error.hidden = false;
  }
}

$("sign-in").addEventListener("click", signIn);
$("sign-out").addEventListener("click", () => {
  forgetToken();
  whenChanged();
});
dialog.querySelector(".password").addEventListener("click", askBrowser);
