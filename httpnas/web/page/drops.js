// Files as browsers hand them over: chosen, chosen as a folder, or dropped.

/** Return the files of an input, each with its path below the folder they go to. */
export function chosenFiles(input) {
  return Array.from(input.files, (file) => {
    return { file, path: (file.webkitRelativePath || file.name).split("/") };
  });
}

/** Yield the files that were dropped, and those in the folders that were. */
export function droppedFiles(transfer) {
  // The browser takes the items back as soon as the event is over.
  const roots = Array.from(transfer.items)
    .filter((item) => item.kind === "file")
    .map((item) => item.webkitGetAsEntry() ?? item.getAsFile());
  return walk(roots, []);
}

async function* walk(entries, above) {
  for (const entry of entries) {
    const path = [...above, entry.name];
    if (entry instanceof File) yield { file: entry, path };
    else if (entry.isFile) yield { file: await opened(entry), path };
    else for await (const batch of batches(entry.createReader())) yield* walk(batch, path);
  }
}

async function* batches(reader) {
  for (;;) {
    const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!batch.length) return;
    yield batch;
  }
}

function opened(entry) {
  return new Promise((resolve, reject) => entry.file(resolve, reject));
}
