// The panels of the page. An image is named as the server wants it: {split, row}, or {seed, number, class, settings}.

import { ask, figure, find, latest, make, onSubmit, picture, told } from "./ask.js";
import { imputeThis, showTest } from "./impute.js";
import { canGenerate, className, decibels, forms, height, options, panels, run, width } from "./run.js";

// What is done where an image is chosen.

let chosen = null;

function thumb(image, lines, { original = null, then = choose } = {}) {
  const button = make("button", { type: "button", className: "thumb", title: lines.join(", ") });
  const images = make("span", { className: "images" }, picture(image.source, lines.join(", ")));
  if (original) images.append(picture(original, "original"));
  const [first, ...others] = lines;
  const caption = make("small", {}, make("b", { textContent: first }), ...others.flatMap((line) => [make("br"), line]));
  button.append(images, caption);
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => then(image, button));
  return button;
}

function choose(image, button) {
  for (const other of document.querySelectorAll(".thumb[aria-pressed=true]")) other.setAttribute("aria-pressed", "false");
  button?.setAttribute("aria-pressed", "true");
  chosen = image;
  const bar = find("#chosen");
  bar.hidden = !image;
  if (!image) return;
  find("img", bar).src = image.source;
  find("span", bar).textContent = image.text;
  for (const id of ["#to-first", "#to-last"]) find(id).hidden = !canGenerate;
  find("#to-impute").hidden = !canGenerate || image.of.split !== "test" || !image.original;
}

find("#to-impute").addEventListener("click", () => {
  open("impute");
  imputeThis(chosen.of.row);
});

function open(id) {
  for (const [name, panel] of Object.entries(panels)) {
    panel.hidden = name !== id;
    find(`#tab-${name}`).setAttribute("aria-selected", String(name === id));
    find(`#tab-${name}`).tabIndex = name === id ? 0 : -1;
  }
  history.replaceState(null, "", `#${id}`);
}

function ofRecord(split, item) {
  const copy = item.copy ? `, copy ${item.copy}` : "";
  return {
    of: { split, row: item.row }, source: item.image, original: item.original,
    text: `${split} ${item.id}${copy}: ${className(item.class)}, ${decibels(item.psnr)}`,
  };
}

async function randomTest() {
  const start = Math.floor(Math.random() * run.splits.test.examples);
  const { items } = await ask("browse", { split: "test", start, count: 1, class: null });
  return ofRecord("test", items[0]);
}

// Browse.

let pages = []; // rows at which pages begin, up to this one
let following = null;

async function browse() {
  const form = forms.browse;
  const start = pages.at(-1);
  await told(panels.browse, async () => {
    const split = form.split.value;
    const label = form.class.value === "" ? null : Number(form.class.value);
    const found = await ask("browse", { split, start, count: Number(form.count.value), class: label });
    const beside = form.originals.checked;
    find("#records").replaceChildren(...found.items.map((item) => thumb(
      ofRecord(split, item),
      [className(item.class), decibels(item.psnr), `id ${item.id}${item.copy ? `, copy ${item.copy}` : ""}`],
      { original: beside ? item.original : null },
    )));
    find("#records").classList.toggle("duo", beside && found.note === "");
    const note = beside && found.note ? `Without originals: ${found.note}. ` : "";
    find("#browse-note").textContent = note + (found.items.length ? "" : "None here.");
    following = found.following;
    const rows = found.items.map((item) => item.row);
    const total = run.splits[split].examples.toLocaleString("en");
    find("#rows").textContent = rows.length ? `rows ${rows[0]} to ${rows.at(-1)} of ${total}` : `of ${total}`;
    form.start.value = start;
  });
  find("#previous").disabled = pages.length < 2;
  find("#next").disabled = following === null;
}

function turn() {
  following = null;
  return browse();
}

onSubmit(forms.browse.split.form, () => { pages = [Number(forms.browse.start.value)]; return turn(); });
for (const name of ["split", "class", "count"]) {
  forms.browse[name].addEventListener("change", () => { pages = [0]; turn(); });
}
forms.browse.originals.addEventListener("change", turn);
find("#next").addEventListener("click", () => {
  if (following === null) return; // clicked again before the answer came
  pages.push(following);
  following = null;
  turn();
});
find("#previous").addEventListener("click", () => {
  if (pages.length < 2) return;
  pages.pop();
  turn();
});

// Decode.

let decoding = null;

const decode = latest(async () => {
  if (!decoding) return;
  const scale = Number(forms.decode.scale.value);
  await told(panels.decode, async () => {
    const made = await ask("decode", { of: decoding.of, scale });
    const size = `${made.shape[0]} × ${made.shape[1]}`;
    const source = made.original ? "the original" : "the field at 1×";
    const figures = [
      figure(picture(made.image, `decoded, ${size} pixels`), make("b", { textContent: "field" }), `, ${size} pixels`),
      figure(picture(made.bicubic, `bicubic, ${size} pixels`), make("b", { textContent: "bicubic" }), ` of ${source}`),
    ];
    if (made.original) {
      figures.push(figure(picture(made.original, "original"), make("b", { textContent: "original" }), `, ${height} × ${width} pixels`));
    }
    find("#decoded").replaceChildren(...figures);
    const missing = made.original ? "" : ` Without original: ${made.note}.`;
    find("#decode-note").textContent = `${decoding.text}.${missing}`;
  });
});

function decodeThis(image) {
  decoding = image;
  find(".hint", panels.decode).hidden = true;
  open("decode");
  return decode();
}

const showScale = () => { forms.decode.shown.value = `${forms.decode.scale.value}×`; };
forms.decode.scale.addEventListener("input", () => { showScale(); decode(); });
forms.decode.scale.form.addEventListener("submit", (event) => event.preventDefault());
find("#decode-any").addEventListener("click", () => told(panels.decode, async () => decodeThis(await randomTest())));
find("#to-decode").addEventListener("click", () => decodeThis(chosen));

// Generate.

const settingsOf = (form) => ({
  guidance: Number(form.guidance.value), steps: Number(form.steps.value), solver: form.solver.value,
});

onSubmit(forms.generate.seed.form, () => told(panels.generate, async () => {
  const form = forms.generate;
  const label = ["all", "any"].includes(form.class.value) ? form.class.value : Number(form.class.value);
  const { items } = await ask("sample", {
    class: label, settings: settingsOf(form), seed: Number(form.seed.value), count: Number(form.count.value),
    scale: Number(form.scale.value),
  });
  const columns = run.class_names.length;
  const sheet = find("#samples");
  sheet.classList.toggle("in-turn", label === "all" && columns <= 12 && items.length >= columns);
  sheet.style.setProperty("--columns", columns);
  sheet.replaceChildren(...items.map(({ image, ...of }) => {
    const name = of.class === null ? "any class" : className(of.class);
    return thumb({ of, source: image, text: `sample ${of.number} of seed ${of.seed}: ${name}` }, [name, `sample ${of.number}`]);
  }));
}));
find("#reseed").addEventListener("click", () => {
  forms.generate.seed.value = Math.floor(Math.random() * 1e6);
  forms.generate.seed.form.requestSubmit();
});

// Interpolate.

const ends = { first: null, last: null };
let frames = [];

function setEnd(id, image) {
  ends[id] = image;
  find(".slot", find(`#${id}`)).replaceChildren(...(image ? [picture(image.source, image.text)] : []));
}

function goTo(index) {
  find("#position").value = index;
  find("#between").src = frames[index];
  find("#between").alt = `image ${index + 1} of ${frames.length}`;
  find("#at").value = `${index + 1} of ${frames.length}`;
  [...find("#frames").children].forEach((button, k) => button.setAttribute("aria-pressed", String(k === index)));
}

const interpolate = () => told(panels.strip, async () => {
  if (!ends.first || !ends.last) throw new Error("Choose two images first: one to begin with, one to end with.");
  const form = forms.strip;
  const made = await ask("strip", {
    first: ends.first.of, last: ends.last.of, settings: settingsOf(form), count: Number(form.count.value),
    scale: Number(form.scale.value),
  });
  frames = made.images;
  find("#frames").replaceChildren(...frames.map((source, k) => {
    const button = make("button", { type: "button" }, picture(source, `image ${k + 1}`));
    button.addEventListener("click", () => goTo(k));
    return button;
  }));
  find("#position").max = frames.length - 1;
  find("#way").hidden = false;
  goTo(Math.floor(frames.length / 2));
});

onSubmit(forms.strip.count.form, interpolate);
find("#position").addEventListener("input", (event) => goTo(Number(event.target.value)));
find("#swap").addEventListener("click", () => {
  const { first, last } = ends;
  setEnd("first", last);
  setEnd("last", first);
});
find("#strip-any").addEventListener("click", () => told(panels.strip, async () => {
  setEnd("first", await randomTest());
  setEnd("last", await randomTest());
}));
for (const id of ["first", "last"]) {
  find(`#to-${id}`).addEventListener("click", () => { setEnd(id, chosen); open("strip"); });
}

// The page as a whole.

function scalesUpTo(most) {
  return [1, 2, 4, 8, 16].filter((scale) => scale <= most).map((scale) => [scale, `${scale}×`]);
}

function setUp() {
  document.title = `${run.name}: explore`;
  find("#name").textContent = run.name;
  const total = Object.values(run.splits).reduce((sum, split) => sum + split.examples, 0);
  find("#facts").textContent = `${total.toLocaleString("en")} functa of ${run.image_shape.join(" × ")} images, `
    + `${run.latent_shape.join(" × ")} numbers each, as ${run.dtype}`;
  const splits = Object.entries(run.splits).filter(([, split]) => split.examples);
  forms.browse.split.replaceChildren(...options(splits.map(([name, { examples }]) => [name, `${name}, ${examples}`])));
  if (run.splits.test?.examples) forms.browse.split.value = "test";
  const classes = run.class_names.map((_, label) => [label, className(label)]);
  forms.browse.class.append(...options(classes));
  forms.browse.originals.checked = !run.originals.missing;
  forms.decode.scale.max = run.largest_scale;
  showScale();
  const why = { generate: run.generator.missing, strip: run.generator.missing };
  why.impute = run.generator.missing || run.originals.missing;
  for (const [id, missing] of Object.entries(why)) {
    if (!missing) continue;
    const told = find(".missing", panels[id]);
    told.textContent = `Not for this run: ${missing}`;
    told.hidden = false;
    for (const element of panels[id].querySelectorAll("form, .studio")) element.hidden = true;
  }
  if (canGenerate) setUpGenerator(classes);
  const tabs = [...document.querySelectorAll("[role=tab]")];
  tabs.forEach((tab, k) => {
    tab.addEventListener("click", () => open(tab.getAttribute("aria-controls")));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = tabs[(k + step + tabs.length) % tabs.length];
      next.click();
      next.focus();
    });
  });
  find("#dismiss").addEventListener("click", () => choose(null));
  open(location.hash.slice(1) in panels ? location.hash.slice(1) : "browse");
}

function setUpGenerator(classes) {
  const { usual, solvers, seed } = run.generator;
  const able = scalesUpTo(run.largest_scale);
  const scale = Math.max(...able.map(([one]) => one).filter((one) => one === 1 || one * Math.max(height, width) <= 64));
  for (const form of [forms.generate, forms.strip]) {
    form.guidance.value = usual.guidance;
    form.guidance.max = run.generator.largest_guidance;
    form.steps.value = usual.steps;
    form.steps.max = run.generator.most_steps;
    form.solver.replaceChildren(...options(solvers.map((name) => [name, name])));
    form.solver.value = usual.solver;
    form.scale.replaceChildren(...options(able));
    form.scale.value = scale;
  }
  const any = run.generator.any_class ? [["any", "any"]] : [];
  forms.generate.class.append(...options([...any, ...classes]));
  forms.generate.seed.value = seed;
  forms.generate.count.max = run.generator.most_samples;
  forms.strip.count.max = run.generator.most_on_a_strip;
  forms.impute.draws.max = run.generator.most_draws;
  forms.impute.steps.max = run.generator.most_imputing_steps;
  forms.impute.row.max = run.originals.num_test - 1;
  if (!run.originals.missing) showTest();
}

setUp();
pages = [0];
await turn();
document.body.dataset.ready = "";
