// Requests to the server, and its refusals in words.

/** A request was refused; the message is for people. The status is 0 if there was no answer. */
export class Refused extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export const UNREACHABLE = "the server cannot be reached. Check the connection, then try again.";

/** Return the answer to a request; throw Refused if it is an error, or there is none. */
export async function request(method, url, { headers = {}, body, signal } = {}) {
  let response;
  try {
    // From the browser's cache, a HEAD could show a version that no longer exists.
    response = await fetch(url, { method, headers, body, signal, cache: "no-store" });
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
    for (const [name, value] of Object.entries(headers)) xhr.setRequestHeader(name, value);
    xhr.send(file);
  });
}

function refusal(status, text) {
  try {
    return new Refused(JSON.parse(text).detail ?? `the answer was ${status}.`, status);
  } catch {
    return new Refused(`the answer was ${status}.`, status);
  }
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
