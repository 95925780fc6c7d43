// The folder on show, one page at a time, and the actions on its entries.

import { complain, forgive, say, show } from "./dialogs.js";
import { dateOf, encode, formatSize, formatTime, hashOf, pathOfHash, quoted, split, urlOf } from "./names.js";
import { Refused, hasToken, request } from "./server.js";
import { allows, fit, isAnonymous, learnRights } from "./session.js";

const PAGE = 200;
// Milliseconds between two refreshes of a folder that receives many files.
const REFRESH = 1000;
// Bytes of a file that is kept in memory to be saved, as there can be no link to it.
const KEPT = 64e6;

const $ = (id) => document.getElementById(id);
const table = $("entries");
const notice = $("notice");
const template = $("entry-template");

let path = [];
let sort = "name";
let order = "asc";
// Where each page began, up to the one that is shown; the first has no cursor.
let cursors = [null];
let next = null;
let loading = new AbortController();
let refreshTimer = null;
let loadedAt = 0;

/** Return the path of the folder that is shown. */
export function shownFolder() {
  return path;
}

/** Show the folder that the location's hash names, from its beginning. */
export async function openFolder() {
  path = pathOfHash(location.hash);
  cursors = [null];
  document.title = path.length ? `${path.at(-1)} · httpnas` : "httpnas";
  showTrail();
  forgive();
  await load();
}

/** Look again soon, if *changed* is in the folder that is shown. */
export function refreshFor(changed) {
  if (!path.every((name, index) => name === changed[index])) return;
  const wait = Math.max(0, loadedAt + REFRESH - Date.now());
  refreshTimer ??= setTimeout(refresh, wait);
}

function refresh() {
  // A dialog gives the focus back to what opened it, which must still be there.
  if (document.querySelector("dialog[open]")) refreshTimer = setTimeout(refresh, REFRESH);
  else load(false);
}

/** Show the page of the folder at the last cursor. */
async function load(aloud = true) {
  clearTimeout(refreshTimer);
  refreshTimer = null;
  loadedAt = Date.now();
  loading.abort();
  loading = new AbortController();
  const signal = loading.signal;
  try {
    if (aloud) await learnRights(path, signal);
    if (!allows("list")) throw new Refused(hiddenWords(), 403);
    const listing = await list(signal);
    next = listing.next ?? null;
    showEntries(listing.entries);
    if (aloud) say(countWords(listing.entries.length));
  } catch (error) {
    if (!signal.aborted) showRefusal(error);
  }
}

async function list(signal) {
  const query = new URLSearchParams({ limit: PAGE, sort, order });
  if (cursors.at(-1) !== null) query.set("after", cursors.at(-1));
  const slash = path.length ? "/" : "";
  const headers = { Accept: "application/json" };
  const answer = await request("GET", `${urlOf(path)}${slash}?${query}`, { headers, signal });
  // A stored file may look like a listing, but only files have entity tags.
  if (!answer.headers.has("ETag")) return answer.json();
  await answer.body.cancel();
  throw new Refused("This name is a file, not a folder.", 409);
}

function hiddenWords() {
  if (isAnonymous()) return "sign in first, as not everybody may see it.";
  return "you may not list it. Whoever runs the server can give you the right.";
}

function countWords(count) {
  const entries = `${count} ${count === 1 ? "entry" : "entries"}`;
  return paged() ? `Page ${cursors.length}, ${entries}.` : `${entries}.`;
}

function paged() {
  return next !== null || cursors.length > 1;
}

function showEntries(entries) {
  keepFocus(() => table.tBodies[0].replaceChildren(...entries.map(row)));
  table.hidden = !entries.length;
  const nothing = paged() ? "There is nothing left on this page." : "This folder is empty.";
  showNotice(entries.length ? "" : nothing);
  for (const header of table.querySelectorAll("[data-sort]")) {
    const direction = order === "asc" ? "ascending" : "descending";
    header.setAttribute("aria-sort", header.dataset.sort === sort ? direction : "none");
  }
  $("pages").hidden = !paged();
  $("pages").querySelector("span").textContent = `Page ${cursors.length}`;
  disable($("previous"), cursors.length === 1, $("next"));
  disable($("next"), next === null, $("previous"));
}

function showRefusal(error) {
  table.hidden = $("pages").hidden = true;
  const missing =
    "There is no folder with this name. If it is new, the first upload creates it. If a link " +
    "led here, the folder has been moved or deleted.";
  const words = `The folder cannot be shown: ${error.message}`;
  showNotice(error.status === 404 ? missing : words);
  say("");
}

function showNotice(words) {
  notice.textContent = words;
  notice.hidden = !words;
}

function disable(button, off, other) {
  if (off && document.activeElement === button) other.focus();
  button.disabled = off;
}

/** Redraw, and give the focus to what has taken the place of what had it. */
function keepFocus(redraw) {
  const focused = document.activeElement;
  const entry = table.tBodies[0].contains(focused) ? focused.closest("tr").dataset.name : null;
  redraw();
  if (entry === null) return;
  const same = [...table.tBodies[0].rows].find((other) => other.dataset.name === entry);
  const control = same?.querySelector(`.${focused.className}`);
  (control ?? $("folder-title")).focus();
}

function row(entry) {
  const made = template.content.firstElementChild.cloneNode(true);
  const part = (selector) => made.querySelector(selector);
  const target = [...path, entry.name];
  const folder = entry.type === "folder";
  made.dataset.name = entry.name;
  made.dataset.type = entry.type;
  part("bdi").textContent = folder ? `${entry.name}/` : entry.name;
  part(".name").setAttribute("href", folder ? hashOf(target) : urlOf(target));
  part(".size").textContent = folder ? "" : formatSize(entry.size);
  if (entry.mtime !== null) {
    part("time").textContent = formatTime(entry.mtime);
    part("time").setAttribute("datetime", dateOf(entry.mtime).toISOString());
  }
  part(".download").setAttribute("href", urlOf(target));
  part(".download").setAttribute("download", entry.name);
  part(".details").addEventListener("click", () => showDetails(entry, target));
  part(".move").addEventListener("click", () => move(entry, target));
  part(".delete").addEventListener("click", () => remove(entry, target));
  for (const control of part(".actions").children) {
    control.setAttribute("aria-label", `${control.textContent} ${entry.name}`);
  }
  fit(made);
  if (folder) {
    part(".download").hidden = part(".details").hidden = true;
  } else {
    if (!allows("read")) part(".name").removeAttribute("href");
    for (const link of [part(".name"), part(".download")]) {
      link.addEventListener("click", (event) => download(event, entry, target));
    }
  }
  return made;
}

/**
 * Save a file where the tab has a token, which the browser does not send when it follows a link. A
 * link of the server's own needs none, and nothing is kept in memory.
 */
async function download(event, entry, target) {
  if (!hasToken()) return;
  event.preventDefault();
  const saved = document.createElement("a");
  try {
    // What is in memory would have the origin of this page, so it is only saved, never shown.
    saved.download = entry.name;
    saved.href = allows("sign") ? await linkTo(target) : await keep(entry, target);
    saved.click();
  } catch (error) {
    complain(`${quoted(entry.name)} cannot be downloaded`, error);
  }
  if (saved.protocol === "blob:") setTimeout(() => URL.revokeObjectURL(saved.href), 60_000);
}

async function linkTo(target) {
  const body = JSON.stringify({ method: "GET", path: target.join("/"), seconds: 60 });
  const { url } = await (await request("POST", "links", { body })).json();
  return urlOf(target) + url.slice(url.indexOf("?"));
}

async function keep(entry, target) {
  if (entry.size > KEPT) {
    const size = formatSize(KEPT);
    throw new Refused(`with a token, more than ${size} takes the right to make links. Or use curl.`);
  }
  return URL.createObjectURL(await (await request("GET", urlOf(target))).blob());
}

function showTrail() {
  const steps = ["All files", ...path].map((name, depth) => {
    const link = document.createElement("a");
    const item = document.createElement("li");
    const text = document.createElement("bdi");
    text.textContent = name;
    link.setAttribute("href", hashOf(path.slice(0, depth)));
    if (depth === path.length) link.setAttribute("aria-current", "page");
    link.append(text);
    item.append(link);
    return item;
  });
  $("trail").replaceChildren(...steps);
}

function move(entry, from) {
  const dialog = $("move-dialog");
  const { name, folder } = dialog.querySelector("form").elements;
  const prepare = () => {
    dialog.querySelector(".name").textContent = entry.name;
    name.value = entry.name;
    name.select();
    folder.value = `/${path.join("/")}`;
  };
  return show(dialog, prepare, async () => {
    const to = [...split(folder.value), checkedName(name.value)];
    const body = JSON.stringify({ path: encode(to) });
    const headers = { "Content-Type": "application/json", "If-None-Match": "*" };
    try {
      await request("PUT", `${urlOf(from)}/mv`, { headers, body });
    } catch (error) {
      if (error.status !== 412) throw error;
      throw new Refused(`${quoted(to.join("/"))} is taken. ${error.message}`, 412);
    }
    say(`Moved ${quoted(entry.name)} to ${quoted(`/${to.join("/")}`)}.`);
    load(false);
  });
}

function remove(entry, target) {
  const dialog = $("delete-dialog");
  const prepare = () => {
    dialog.querySelector(".name").textContent = entry.name;
    dialog.querySelector(".what").textContent =
      entry.type === "folder"
        ? "The folder is deleted with everything in it. This cannot be undone."
        : "This cannot be undone.";
  };
  return show(dialog, prepare, async () => {
    const headers = entry.etag === null ? {} : { "If-Match": entry.etag };
    try {
      await request("DELETE", urlOf(target), { headers });
    } catch (error) {
      refreshFor(target);
      if (error.status !== 412) throw error;
      throw new Refused(`The file has changed since it was listed. ${error.message}`, 412);
    }
    say(`Deleted ${quoted(entry.name)}.`);
    load(false);
  });
}

/** Go to a folder that may not exist yet. */
export async function newFolder() {
  const dialog = $("folder-dialog");
  const { name } = dialog.querySelector("form").elements;
  await show(
    dialog,
    () => {},
    () => {
      location.hash = hashOf([...path, checkedName(name.value)]);
    },
  );
}

function checkedName(name) {
  if (name === "." || name === "..") throw new Refused("A name cannot be . or ..");
  if (!name.includes("/")) return name;
  throw new Refused("A name cannot contain a slash; open the folder, or name it below.");
}

async function showDetails(entry, target) {
  const dialog = $("details-dialog");
  const part = (selector) => dialog.querySelector(selector);
  const closed = new AbortController();
  const prepare = () => {
    part(".name").textContent = entry.name;
    part(".size").textContent = `${formatSize(entry.size)} (${entry.size.toLocaleString()} bytes)`;
    part(".time").textContent = formatTime(entry.mtime);
    part(".lines").textContent = part(".sha256").textContent = "";
    part(".count").hidden = part(".digest").hidden = false;
    part(".copy").hidden = true;
  };
  part(".count").onclick = () => find(part, ".count", ".lines", lines(target, closed.signal));
  part(".digest").onclick = async () => {
    await find(part, ".digest", ".sha256", sha256(target, closed.signal));
    // Browsers offer the clipboard only to pages over HTTPS or from this machine.
    part(".copy").hidden = !navigator.clipboard || !part(".digest").hidden;
  };
  part(".copy").onclick = () => navigator.clipboard.writeText(part(".sha256").textContent);
  await show(dialog, prepare);
  closed.abort();
}

/** Put what comes out of *finding* in the place of the button that asked for it. */
async function find(part, button, output, finding) {
  part(button).disabled = true;
  part(".error").hidden = true;
  part(output).textContent = "…";
  try {
    part(output).textContent = await finding;
    part(button).hidden = true;
    part("[autofocus]").focus();
  } catch (error) {
    part(output).textContent = "";
    part(".error").textContent = error.message;
    part(".error").hidden = error.name === "AbortError";
  } finally {
    part(button).disabled = false;
  }
}

async function lines(target, signal) {
  const answer = await request("GET", `${urlOf(target)}/wc`, { signal });
  return Number(await answer.text()).toLocaleString();
}

async function sha256(target, signal) {
  const headers = { "Want-Repr-Digest": "sha-256=1" };
  const answer = await request("HEAD", urlOf(target), { headers, signal });
  const field = answer.headers.get("Repr-Digest") ?? "";
  const base64 = /sha-256=:([^:]*):/.exec(field)?.[1];
  if (!base64) throw new Refused("The server did not send a digest.");
  return Array.from(atob(base64), (c) => c.charCodeAt(0).toString(16).padStart(2, "0")).join("");
}

function turnTo(pages) {
  cursors = pages;
  load();
}

for (const header of table.querySelectorAll("[data-sort]")) {
  header.querySelector("button").addEventListener("click", () => {
    const turned = sort === header.dataset.sort && order === "asc";
    sort = header.dataset.sort;
    order = turned ? "desc" : "asc";
    turnTo([null]);
  });
}
$("next").addEventListener("click", () => turnTo([...cursors, next]));
$("previous").addEventListener("click", () => turnTo(cursors.slice(0, -1)));
$("refresh").addEventListener("click", () => load());
