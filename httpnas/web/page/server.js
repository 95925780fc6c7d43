// Requests to the server, with the token of this tab, and refusals in words.

const TOKEN = "httpnas-token";
const WORDS = {
  list: "list folders",
  read: "read files",
  create: "create files",
  replace: "replace files",
  append: "append to files",
  delete: "delete",
  "see-transfers": "see the transfers",
  sign: "make links",
};

/** A request was refused; the message is for people. The status is 0 if there was no answer. */
export class Refused extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export const UNREACHABLE = "the server cannot be reached. Check the connection, then try again.";

/** Tell whether this tab has a token; without one, the browser says who asks, or nobody does. */
export function hasToken() {
  return sessionStorage.getItem(TOKEN) !== null;
}

/** Send *token* with each request of this tab, until the tab is closed. */
export function keepToken(token) {
  if (!/^[\x21-\x7e]+$/.test(token)) throw new Refused("this is no token.");
  sessionStorage.setItem(TOKEN, token);
}

export function forgetToken() {
  sessionStorage.removeItem(TOKEN);
}

function withToken(headers) {
  return hasToken() ? { ...headers, Authorization: `Bearer ${sessionStorage.getItem(TOKEN)}` } : headers;
}

/** Return the answer to a request; throw Refused if it is an error, or there is none. */
export async function request(method, url, { headers = {}, body, signal } = {}) {
  let response;
  try {
    // From the browser's cache, a HEAD could show a version that no longer exists. And where there is
    // a token, the browser is not to ask for a password.
    const credentials = hasToken() ? "omit" : "same-origin";
    const sent = withToken(headers);
    response = await fetch(url, { method, headers: sent, body, signal, credentials, cache: "no-store" });
  } catch (error) {
    throw signal?.aborted ? error : new Refused(UNREACHABLE);
  }
  if (!response.ok) throw refusal(response.status, await response.text().catch(() => ""));
  return response;
}

/** Send *file* and report progress, which fetch cannot do. */
export function upload(url, file, headers, signal, onProgress) {
  return new Promise((resolve, reject) => {
    const xhr = new XMLHttpRequest();
    xhr.upload.addEventListener("progress", (event) => onProgress(event.loaded));
    xhr.addEventListener("load", () => {
      if (xhr.status === 200) resolve();
      else reject(refusal(xhr.status, xhr.responseText));
    });
    xhr.addEventListener("error", async () => reject(await cause(file)));
    xhr.addEventListener("abort", () => reject(signal.reason));
    signal.addEventListener("abort", () => xhr.abort());
    xhr.open("POST", url);
    for (const [name, value] of Object.entries(withToken(headers))) xhr.setRequestHeader(name, value);
    xhr.send(file);
  });
}

function refusal(status, text) {
  try {
    const { type, detail, rights } = JSON.parse(text);
    if (type === "/docs/problems#missing-right") return new Refused(missing(rights), status);
    return new Refused(detail ?? `the answer was ${status}.`, status);
  } catch {
    return new Refused(`the answer was ${status}.`, status);
  }
}

function missing(rights) {
  const words = rights.map((right) => WORDS[right] ?? right).join(" or ");
  return `you may not do this here: it takes the right to ${words}. Whoever runs the server can give it.`;
}

/** Tell an unreadable file from a lost connection: browsers report both alike. */
async function cause(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    return new Refused("the file cannot be read, or has changed meanwhile.", -1);
  }
  return new Refused(UNREACHABLE);
}
