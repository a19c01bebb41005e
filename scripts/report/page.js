"use strict";
// Each figure's steps are numbers: what the cache held at a moment is drawn from them.
for (const figure of document.querySelectorAll("figure[data-steps]")) {
  const steps = JSON.parse(figure.dataset.steps); // [start, end, began, ended, until or null, row, kind]
  const parts = figure.querySelectorAll(".tensor i"), rows = figure.querySelectorAll(".strip g");
  const [button, slider, output] = figure.querySelectorAll("button, input, output");
  const capacity = Number(figure.dataset.capacity), total = Math.max(...steps.map((step) => step[3]), 1e-6);
  const seconds = Math.min(12, Math.max(4, total)); // of a replay
  let playing = 0;

  function show(t) {
    let length = 0, done = 0;
    steps.forEach(([start, end, began, ended, until, row, kind], i) => {
      const part = t >= ended ? 1 : t <= began ? 0 : (t - began) / (ended - began);
      const here = until === null || t < until ? start + Math.max(0, end - start) * part : start;
      if (part > 0) done = i;
      if (part > 0 && kind !== "branch") length = kind === "rollback" ? end : start + (end - start) * part;
      parts[i].style.width = (100 * (here - start)) / capacity + "%";
      if (row >= 0 && (i === 0 || steps[i - 1][5] !== row)) rows[row].style.opacity = t >= began ? 1 : 0.12;
    });
    output.textContent = `${parts[done].title} · ${Math.round(length).toLocaleString("en")}`;
  }

  function play(began) {
    const run = ++playing;
    requestAnimationFrame(function step(now) {
      if (run !== playing) return;
      const part = Math.min(1, Math.max(0, (now - began) / 1000 / seconds));
      slider.value = 1000 * part;
      show(total * part);
      if (part < 1) requestAnimationFrame(step);
    });
  }

  button.addEventListener("click", () => play(performance.now()));
  slider.addEventListener("input", () => { playing++; show((total * slider.value) / 1000); });
  figure.querySelector(".controls").hidden = false;
  show(total);
}
