"use strict";
// The gallery: which of its pictures are shown, and in which order. All is in the page; this only shows and sorts it.
const form = document.getElementById("controls"), gallery = document.querySelector(".gallery"), shots = [...gallery.children];
const count = document.getElementById("count"), none = document.getElementById("none");
const ORDERS = {
  loss: (a, b) => b.loss - a.loss,
  iou: (a, b) => a.iou - b.iou,
  probability: (a, b) => b.probability - a.probability,
  true: (a, b) => a.true.localeCompare(b.true) || a.predicted.localeCompare(b.predicted),
};

function show(all) {
  const { set, kind, order, ...labels } = Object.fromEntries(new FormData(form));
  const isShown = ({ dataset }) => (!set || dataset.sets.split(" ").includes(set)) && (!kind || dataset.kind === kind)
    && Object.entries(labels).every(([name, label]) => !label || dataset[name] === label);
  gallery.append(...shots.sort((a, b) => ORDERS[order](a.dataset, b.dataset) || b.dataset.loss - a.dataset.loss));
  for (const shot of shots) shot.hidden = !isShown(shot);
  const shown = shots.filter((shot) => !shot.hidden).length;
  count.textContent = all > shown ? `${shown} of ${all} images; the others are in predictions.csv` : `${shown} image${shown === 1 ? "" : "s"}`;
  none.hidden = shown > 0;
}

form.addEventListener("change", () => show());
form.addEventListener("reset", () => setTimeout(show)); // after the fields have been reset
form.addEventListener("submit", (event) => event.preventDefault());
for (const cell of document.querySelectorAll("button[data-true]")) {
  cell.addEventListener("click", () => {
    form.reset();
    form.elements.set.value = "";
    for (const name of ["true", "predicted"]) form.elements[name].value = cell.dataset[name];
    setTimeout(() => show(Number(cell.dataset.count)));
    document.getElementById("images").scrollIntoView();
  });
}
show();
