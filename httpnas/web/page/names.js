// Paths, which are lists of components as a name may hold anything but a slash, and words for
// numbers.

/** Return the path that a location's hash such as "#/a/b%20c/" stands for. */
export function pathOfHash(hash) {
  return hash.replace(/^#/, "").split("/").flatMap((part) => split(decode(part)));
}

/** Return the hash that stands for the folder *path*. */
export function hashOf(path) {
  return `#/${path.map((name) => `${encodeURIComponent(name.toWellFormed())}/`).join("")}`;
}

/** Return the components of what a person typed, without those that the server drops. */
export function split(text) {
  return text.split("/").filter((part) => part !== "" && part !== ".");
}

/** Return *path* percent-encoded, as the server decodes it. */
export function encode(path) {
  return path.map(encodeName).join("/");
}

/** Return where *path* is served, from the page, which a proxy may serve below a path of its own. */
export function urlOf(path) {
  return `file/${encode(path)}`;
}

/** Return *name* in quotes, so that its direction of writing does not reach what is around it. */
export function quoted(name) {
  return `“\u2068${name}\u2069”`;
}

export function formatSize(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let power = 0;
  while (bytes >= 999.5 && power < units.length - 1) {
    bytes /= 1000;
    power += 1;
  }
  const digits = power === 0 || bytes >= 99.95 ? 0 : 1;
  return `${bytes.toFixed(digits)} ${units[power]}`;
}

export function formatSeconds(seconds) {
  const whole = Math.ceil(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

// Seconds since the epoch at which the dates of browsers end, in the year 275760.
const LAST = 8.64e12;

/** Return a time in seconds since the epoch as a date, or the first or last one that there is. */
export function dateOf(seconds) {
  return new Date(Math.min(Math.max(seconds, -LAST), LAST) * 1000);
}

/** Return a time in seconds since the epoch, in words of the browser's language. */
export function formatTime(seconds) {
  return moment.format(dateOf(seconds));
}

function encodeName(name) {
  // Behind a literal slash, wc and mv would be verbs, and browsers would resolve dots.
  const slash = ["wc", "mv", ".."].includes(name) ? "%2F" : "";
  return slash + encodeURIComponent(name.toWellFormed());
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
