// Questions and messages.

const problem = document.getElementById("problem");
const status = document.getElementById("status");

let last = Promise.resolve();

/** Announce *text* in the status line. */
export function say(text) {
  status.textContent = text;
}

/** Report a failure: *what* was tried, and the error that says why it failed. */
export function complain(what, error) {
  if (error?.name === "AbortError") return;
  problem.querySelector("p").textContent = `${what}: ${error.message}`;
  problem.hidden = false;
}

/** Remove the last complaint: the person has gone on. */
export function forgive() {
  problem.hidden = true;
}

problem.querySelector("button").addEventListener("click", forgive);

/**
 * Show a dialog, once no other is open, and return the value of the button that closed it: ""
 * for Escape.
 *
 * @param prepare called before it opens, with its form.
 * @param action called when the person agrees; if it fails, the dialog stays open and says why.
 */
export function show(dialog, prepare, action = () => {}) {
  const closed = last.then(() => open(dialog, prepare, action));
  last = closed;
  return closed;
}

function open(dialog, prepare, action) {
  const form = dialog.querySelector("form");
  const error = form.querySelector(".error");
  form.reset();
  if (error) error.hidden = true;
  prepare(form);
  form.onsubmit = (event) => {
    if (event.submitter?.value !== "ok") return;
    event.preventDefault();
    agree(dialog, event.submitter, error, action);
  };
  dialog.returnValue = "";
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
    dialog.showModal();
  });
}

async function agree(dialog, button, error, action) {
  button.disabled = true;
  try {
    await action();
    dialog.close("ok");
  } catch (refused) {
    if (dialog.open) {
      error.textContent = refused.message;
      error.hidden = false;
    } else {
      complain("The last action failed", refused);
    }
  } finally {
    button.disabled = false;
  }
}
