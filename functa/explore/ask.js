// Questions to the server, and what is shown while it works on them.

export const find = (selector, inside = document) => inside.querySelector(selector);

/** An element with attributes, properties in camelCase, and children. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export const picture = (source, alt, kind = "pixels") => make("img", { src: source, alt, className: kind });

export function figure(image, ...caption) {
  return make("figure", {}, image, make("figcaption", {}, ...caption));
}

/** The answer to a question; an Error whose message is a sentence where there is none. */
export async function ask(question, body) {
  let response;
  try {
    response = await fetch(`api/${question}`, body === undefined ? {} : {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
  } catch {
    throw new Error("The server does not answer: is it still running?");
  }
  const answer = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

let working = 0;
let since = 0;

async function watch() {
  const status = find("#status");
  while (working) {
    const seconds = (performance.now() - since) / 1000;
    if (seconds > 0.4) { // what is quicker needs no word
      const { doing } = await ask("doing").catch(() => ({ doing: "" }));
      status.textContent = `${doing || "working"} … ${seconds.toFixed(0)} s`;
      status.hidden = !working;
    }
    await new Promise((done) => setTimeout(done, 250));
  }
  status.hidden = true;
}

/** Runs a task of a panel: told as it goes on, its error shown in the panel. True where it succeeded. */
export async function told(panel, task) {
  const error = find(".error", panel);
  error.hidden = true;
  working += 1;
  if (working === 1) {
    since = performance.now();
    watch();
  }
  try {
    await task();
    return true;
  } catch (problem) {
    error.textContent = problem.message;
    error.hidden = false;
    return false;
  } finally {
    working -= 1;
  }
}

/** A task that is asked for faster than it is done: of those that wait only the last one runs. */
export function latest(task) {
  let running = false;
  let again = false;
  return async () => {
    again = true;
    if (running) return;
    running = true;
    try {
      while (again) {
        again = false;
        await task();
      }
    } finally {
      running = false;
    }
  };
}

/** Runs a form's task by its button, which cannot be pressed twice. */
export function onSubmit(form, task) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = find("button:not([type])", form);
    if (button.disabled) return;
    button.disabled = true;
    try {
      await task();
    } finally {
      button.disabled = false;
    }
  });
}
