// The transfers that run now, and those that ended lately.

import { formatSeconds, formatSize, formatTime, quoted } from "./names.js";
import { request } from "./server.js";

const POLL = 1000;
const LIMIT = 20;

const details = document.getElementById("transfers");
const tables = document.getElementById("transfers-tables");
const notice = document.getElementById("transfers-notice");
const template = document.getElementById("transfer-template");

let timer = null;

function watch() {
  clearTimeout(timer);
  if (details.open && !document.hidden) look();
}

async function look() {
  clearTimeout(timer);
  try {
    const answer = await request("GET", `transfers?limit=${LIMIT}`);
    const { running, ended } = await answer.json();
    fill("running", running, runningFacts);
    fill("ended", ended, endedFacts);
    tables.hidden = false;
    notice.hidden = true;
  } catch (error) {
    notice.textContent = `The transfers cannot be shown: ${error.message}`;
    notice.hidden = false;
    tables.hidden = true;
  }
  if (details.open && !document.hidden) timer = setTimeout(look, POLL);
}

function fill(id, transfers, facts) {
  const items = transfers.map((transfer) => {
    const item = template.content.firstElementChild.cloneNode(true);
    item.querySelector(".verb").textContent = transfer.verb;
    item.querySelector(".name").textContent = transfer.name;
    item.querySelector(".facts").textContent = facts(transfer).join(" · ");
    return item;
  });
  if (!items.length) {
    items.push(document.createElement("li"));
    items[0].textContent = "none";
  }
  document.getElementById(id).replaceChildren(...items);
}

function runningFacts({ client, bytes, bytes_per_second: speed, seconds }) {
  return [formatSize(bytes), `${formatSize(speed)}/s`, `for ${formatSeconds(seconds)}`, client];
}

function endedFacts({ client, bytes, since, seconds, outcome, status, to }) {
  const result = status === undefined ? outcome : `${outcome} (${status})`;
  const took = `${formatSize(bytes)} in ${formatSeconds(seconds)}`;
  const facts = [result, took, formatTime(Date.parse(since) / 1000), client];
  return to === undefined ? facts : [`to ${quoted(to)}`, ...facts];
}

details.addEventListener("toggle", watch);
document.addEventListener("visibilitychange", watch);
