// What every panel needs to know of the run and of the page.

import { ask, find, make } from "./ask.js";

export const run = await ask("run").catch((problem) => {
  find("#facts").textContent = problem.message;
  throw problem;
});
export const [height, width] = run.image_shape;
export const canGenerate = !run.generator.missing;
export const panels = Object.fromEntries(["browse", "decode", "generate", "strip", "impute"].map((id) => [id, find(`#${id}`)]));
export const forms = Object.fromEntries(Object.entries(panels).map(([id, panel]) => [id, find("form", panel).elements]));

export function className(label) {
  if (label === null || label < 0) return "no class";
  const name = run.class_names[label] ?? String(label);
  return /^\d+$/.test(name) ? `class ${name}` : name;
}

export const decibels = (value) => `${value.toFixed(2)} dB`;
export const options = (entries) => entries.map(([value, text]) => make("option", { value, textContent: text }));
