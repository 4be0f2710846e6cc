// The panel on which a part of a test image is hidden and filled in.

import { ask, figure, find, latest, make, onSubmit, picture, told } from "./ask.js";
import { Mask } from "./paint.js";
import { className, decibels, forms, height, panels, run, width } from "./run.js";

let shown = 0; // the row that the mask lies on

const mask = new Mask(find("#mask"), (count) => {
  find("#mask-note").textContent = `${count} of ${height * width} pixels are hidden.`;
});

export const showTest = latest(() => told(panels.impute, async () => {
  const row = Number(forms.impute.row.value);
  const { image, class: label } = await ask("test_image", { row });
  await mask.show(image, [height, width]);
  shown = row;
  find("#mask").title = className(label);
  find("#imputed").replaceChildren();
  find("#draws-shown").hidden = true;
}));

onSubmit(forms.impute.draws.form, () => told(panels.impute, async () => {
  const form = forms.impute;
  if (Number(form.row.value) !== shown) throw new Error("the mask lies on another image: wait until this one is shown");
  const made = await ask("impute", {
    row: shown, hidden: mask.rows(), draws: Number(form.draws.value), steps: Number(form.steps.value),
    seed: Number(form.seed.value),
  });
  const result = (source, name, psnr, kind) => figure(
    picture(source, name, kind), make("b", { textContent: name }), psnr === undefined ? "" : `, ${decibels(psnr)}`,
  );
  find("#imputed").replaceChildren(
    result(made.seen, "seen", undefined, "pixels checked"),
    result(made.without, "without prior", made.psnr.without),
    result(made.draws[0], "a draw with prior", made.psnr.draw),
    result(made.mean, "mean of draws", made.psnr.mean),
    make("p", { className: "note", textContent: "PSNR of the hidden pixels." }),
  );
  find("#draws").replaceChildren(...made.draws.map((source, k) => picture(source, `draw ${k + 1}`)));
  find("#draws-shown").hidden = false;
}));

forms.impute.row.addEventListener("change", showTest);
find("#impute-any").addEventListener("click", () => {
  forms.impute.row.value = Math.floor(Math.random() * run.originals.num_test);
  showTest();
});
const showBrush = () => { mask.brush = Number(find("#brush").value); find("#brush-size").value = `${mask.brush} px`; };
find("#brush").addEventListener("input", showBrush);
find("#uncover").addEventListener("change", (event) => { mask.uncover = event.target.checked; });
find("#left-half").addEventListener("click", () => mask.leftHalf());
find("#most").addEventListener("click", () => mask.random(0.9));
find("#clear").addEventListener("click", () => mask.clear());

/** Shows a test image by its row, nothing of it hidden. */
export function imputeThis(row) {
  forms.impute.row.value = row;
  return showTest();
}

showBrush();
find("#brush").max = Math.max(3, Math.round(Math.max(height, width) / 2));
