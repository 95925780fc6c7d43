// Uploads: a queue, of which a few run at a time, with a row for each.

import { forgive, say, show } from "./dialogs.js";
import { formatSeconds, formatSize, quoted, urlOf } from "./names.js";
import { request, upload as send } from "./server.js";

const AT_ONCE = 3;
// At most this many waiting uploads have rows; the others get theirs when they start. Rows of
// finished uploads are removed, so that a folder of a hundred thousand files does not fill the page.
const ROWS = 100;
const DONE_ROWS = 20;
// Milliseconds between two samples of an upload's progress, and how many samples make its speed.
const TICK = 500;
const TICKS = 10;

const section = document.getElementById("uploads");
const rows = document.getElementById("upload-rows");
const template = document.getElementById("upload-template");
const summary = document.getElementById("queue");
const goOn = document.getElementById("go-on");
const cancelAll = document.getElementById("cancel-all");
const clear = document.getElementById("clear");

let waiting = [];
const running = new Set();
let paused = false;
let done = 0;
// "replace" or "keep", once the person has chosen that for all that follow.
let standing = null;
// Settles when every question whether to replace has been answered.
let asking = Promise.resolve();
let whenStored = () => {};

class Upload {
  constructor(file, path) {
    this.file = file;
    this.path = path;
    this.name = path.join("/");
    this.loaded = 0;
  }

  /** Make the row, if that has not been done. */
  appear() {
    if (this.row) return;
    this.row = template.content.firstElementChild.cloneNode(true);
    this.part(".name").textContent = this.name;
    this.part("progress").max = this.file.size || 1;
    this.part("progress").setAttribute("aria-label", `Upload of ${this.name}`);
    this.part(".cancel").setAttribute("aria-label", `Cancel ${this.name}`);
    this.part(".cancel").addEventListener("click", () => cancel(this));
    this.part(".retry").setAttribute("aria-label", `Retry ${this.name}`);
    this.part(".retry").addEventListener("click", () => retry(this));
    this.become("waiting", "waiting");
    rows.append(this.row);
  }

  part(selector) {
    return this.row.querySelector(selector);
  }

  become(state, words) {
    const active = state === "waiting" || state === "running";
    const focused = this.row.contains(document.activeElement) && document.activeElement;
    this.row.dataset.state = state;
    this.part(".state").textContent = words;
    this.part("progress").hidden = !active;
    this.part(".cancel").hidden = !active;
    this.part(".retry").hidden = state !== "failed" && state !== "cancelled";
    if (focused?.hidden) (this.row.querySelector("button:not([hidden])") ?? clear).focus();
  }

  progress(loaded) {
    this.loaded = loaded;
    this.part("progress").value = loaded;
  }

  /** Say how far it is, how fast, and how long it will take. */
  tick() {
    const now = performance.now();
    this.ticks = [...this.ticks, { now, loaded: this.loaded }].slice(-TICKS);
    const first = this.ticks[0];
    const speed = (this.loaded - first.loaded) / ((now - first.now) / 1000 || 1);
    const size = formatSize(this.file.size);
    let words = `${formatSize(this.loaded)} of ${size}`;
    if (this.loaded >= this.file.size) words = `${size} sent, storing`;
    else if (speed > 0) {
      const left = formatSeconds((this.file.size - this.loaded) / speed);
      words += `, ${formatSize(speed)}/s, ${left} left`;
    }
    this.become("running", words);
  }
}

/** Upload *file* to *path* when its turn comes. */
export function enqueue(file, path) {
  const upload = new Upload(file, path);
  waiting.push(upload);
  if (rows.childElementCount < ROWS) upload.appear();
  section.hidden = false;
  pump();
}

/** Call *listener* with the path of every file that has been stored. */
export function onStored(listener) {
  whenStored = listener;
}

function pump() {
  while (!paused && waiting.length && running.size < AT_ONCE) run(waiting.shift());
  if (!waiting.length && !running.size) standing = null;
  const counts = [`${running.size} running`, `${waiting.length} waiting`, `${done} done`];
  summary.textContent = counts.join(", ") + (paused ? "; paused, as the server was not there" : "");
  goOn.hidden = !paused;
  cancelAll.hidden = !waiting.length && !running.size;
}

async function run(upload) {
  upload.appear();
  upload.controller = new AbortController();
  upload.ticks = [];
  upload.progress(0);
  upload.become("running", "starting");
  running.add(upload);
  let timer;
  try {
    const condition = await conditionFor(upload);
    if (condition) {
      upload.tick();
      timer = setInterval(() => upload.tick(), TICK);
      const signal = upload.controller.signal;
      await send(urlOf(upload.path), upload.file, condition, signal, (n) => upload.progress(n));
      stored(upload);
    } else {
      upload.become("kept", "not uploaded: what was there is kept");
    }
  } catch (error) {
    failed(upload, error);
  } finally {
    clearInterval(timer);
    running.delete(upload);
    pump();
  }
}

/** Return the headers that keep an upload from replacing what nobody agreed to replace. */
async function conditionFor(upload) {
  const etag = await etagOf(upload);
  if (etag === null) return { "If-None-Match": "*" };
  asking = asking.then(() => standing ?? askToReplace(upload));
  return (await asking) === "replace" ? { "If-Match": etag } : null;
}

/** Return the entity tag of the file that has the name, null when there is none. */
async function etagOf(upload) {
  try {
    const answer = await request("HEAD", urlOf(upload.path), { signal: upload.controller.signal });
    return answer.headers.get("ETag");
  } catch (error) {
    if (!error.status) throw error;
    // HEAD has no body: the answer to the upload will say why the name is refused.
    return null;
  }
}

async function askToReplace(upload) {
  const dialog = document.getElementById("replace-dialog");
  const answer = await show(dialog, () => {
    dialog.querySelector(".name").textContent = upload.name;
  });
  if (dialog.querySelector("[name=all]").checked) standing = answer || "keep";
  return answer;
}

function stored(upload) {
  done += 1;
  upload.become("done", `stored, ${formatSize(upload.file.size)}`);
  say(`Uploaded ${quoted(upload.name)}.`);
  const old = [...rows.querySelectorAll("[data-state=done]")].slice(0, -DONE_ROWS);
  for (const row of old) row.remove();
  whenStored(upload.path);
}

function failed(upload, error) {
  if (error.name === "AbortError") {
    upload.become("cancelled", "cancelled");
    return;
  }
  // Without a server, everything in the queue would fail at once.
  if (error.status === 0) paused = true;
  const faster = error.status === 412 ? "somebody else changed it first. " : "";
  upload.become("failed", `not uploaded: ${faster}${error.message}`);
  say(`Could not upload ${quoted(upload.name)}: ${faster}${error.message}`);
}

function cancel(upload) {
  if (running.has(upload)) {
    upload.controller.abort();
  } else {
    waiting = waiting.filter((other) => other !== upload);
    upload.become("cancelled", "cancelled");
    pump();
  }
}

function retry(upload) {
  upload.become("waiting", "waiting");
  waiting.unshift(upload);
  resume();
}

function resume() {
  paused = false;
  forgive();
  pump();
}

goOn.addEventListener("click", resume);

cancelAll.addEventListener("click", () => {
  const count = waiting.length + running.size;
  waiting = waiting.filter((upload) => upload.row);
  for (const upload of [...waiting, ...running]) cancel(upload);
  pump();
  say(`Uploads cancelled: ${count}.`);
});

clear.addEventListener("click", () => {
  for (const row of [...rows.children]) {
    if (!["waiting", "running"].includes(row.dataset.state)) row.remove();
  }
  done = 0;
  section.hidden = !running.size && !waiting.length;
});

addEventListener("beforeunload", (event) => {
  if (running.size || waiting.length) event.preventDefault();
});
