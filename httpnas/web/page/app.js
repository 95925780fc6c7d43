// The page: connects its parts.

import { complain } from "./dialogs.js";
import { chosenFiles, droppedFiles } from "./drops.js";
import { newFolder, openFolder, refreshFor, shownFolder } from "./folder.js";
import { onSession } from "./session.js";
import "./transfers.js";
import { enqueue, onStored } from "./uploads.js";

const form = document.getElementById("upload-form");

function choose(event) {
  const folder = shownFolder();
  for (const { file, path } of chosenFiles(event.target)) enqueue(file, [...folder, ...path]);
  // Otherwise, choosing the same file again would be no change.
  event.target.value = "";
}

async function drop(event) {
  document.body.classList.remove("dropping");
  if (!hasFiles(event)) return;
  event.preventDefault();
  const folder = shownFolder();
  try {
    for await (const { file, path } of droppedFiles(event.dataTransfer)) {
      enqueue(file, [...folder, ...path]);
    }
  } catch (error) {
    complain("Some of what was dropped cannot be read", error);
  }
}

function dragOver(event) {
  if (!hasFiles(event)) return;
  event.preventDefault();
  document.body.classList.add("dropping");
}

function hasFiles(event) {
  return event.dataTransfer.types.includes("Files");
}

document.documentElement.classList.add("scripted");
document.getElementById("send").hidden = true;
for (const element of document.querySelectorAll(".with-script")) element.hidden = false;

document.getElementById("files").addEventListener("change", choose);
document.getElementById("directory").addEventListener("change", choose);
document.getElementById("new-folder").addEventListener("click", newFolder);
form.addEventListener("submit", (event) => event.preventDefault());
addEventListener("dragover", dragOver);
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
addEventListener("drop", drop);
addEventListener("hashchange", openFolder);
onStored(refreshFor);
onSession(openFolder);
openFolder();
