// The first of the two old systems in a few lines: POST, GET and PUT of /file/NAME with streams.
// HEAD, ranges, entity tags and /wc are here so that they can be measured. It syncs nothing.
// node node.js FOLDER PORT
"use strict";
const fs = require("fs");
const http = require("http");
const path = require("path");
const { pipeline } = require("stream");

const [folder, port] = process.argv.slice(2);

function end(response, status, text) {
  response.writeHead(status, { "Content-Length": Buffer.byteLength(text) });
  response.end(text);
}

function store(request, response, file, flags) {
  pipeline(request, fs.createWriteStream(file, { flags }), (error) =>
    end(response, error ? 500 : 200, error ? String(error) : "OK"));
}

function count(response, file) {
  let lines = 0;
  fs.createReadStream(file)
    .on("error", (error) => end(response, 404, String(error)))
    .on("data", (chunk) => {
      for (let at = chunk.indexOf(10); at >= 0; at = chunk.indexOf(10, at + 1)) lines += 1;
    })
    .on("end", () => end(response, 200, `${lines}\n`));
}

function send(request, response, file) {
  fs.stat(file, (error, found) => {
    if (error) return end(response, 404, String(error));
    const tag = `"${found.ino}-${found.size}-${found.mtimeMs}"`;
    if (request.headers["if-none-match"] === tag) {
      response.writeHead(304, { ETag: tag });
      return response.end();
    }
    const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range || "");
    const [start, last] = range ? [Number(range[1]), Number(range[2])] : [0, found.size - 1];
    response.writeHead(range ? 206 : 200, { "Content-Length": last - start + 1, ETag: tag });
    if (request.method === "HEAD" || last < start) return response.end();
    pipeline(fs.createReadStream(file, { start, end: last }), response, () => {});
  });
}

http.createServer((request, response) => {
  const [, door, name, what] = request.url.split("/");
  const file = path.join(folder, path.basename(decodeURIComponent(name || "")));
  if (door !== "file") return end(response, 404, "");
  if (request.method === "POST") return store(request, response, file, "w");
  if (request.method === "PUT") return store(request, response, file, "a");
  if (what === "wc") return count(response, file);
  return send(request, response, file);
}).listen(Number(port), "127.0.0.1");
