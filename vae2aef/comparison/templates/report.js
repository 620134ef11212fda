"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const specs = read("specs"), test = read("test-data"), drawn = new Map();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const dialog = document.querySelector("dialog");

  // The page's own colours, as they are now: light or dark.
  function config(colours) {
    const css = getComputedStyle(document.documentElement), of = (name) => css.getPropertyValue(name).trim();
    const text = of("--text"), dim = of("--dim"), line = of("--line");
    const arms = [0, 1, 2, 3].map((i) => of(`--c${i}`));
    return {
      background: "transparent", view: { stroke: "transparent" }, font: "system-ui, sans-serif",
      axis: { labelColor: dim, titleColor: dim, gridColor: line, domainColor: line, tickColor: line, titleFontWeight: "normal", labelFontSize: 11 },
      legend: { labelColor: text, titleColor: dim, orient: "top", labelFontSize: 12, titleFontWeight: "normal", columns: 4 },
      title: { color: text, anchor: "start", fontSize: 12 },
      range: { category: (colours || [0, 1, 2, 3]).map((i) => (i < 0 ? of("--neutral") : arms[i % 4])) },
    };
  }

  async function draw(place, name) {
    const spec = { ...specs[name] }, colours = spec.usermeta.colours;
    delete spec.config;
    if (JSON.stringify(spec).includes('"name":"test"')) spec.datasets = { ...spec.datasets, test };
    if (spec.usermeta.square) place.style.maxWidth = "34rem";
    if (drawn.has(place)) drawn.get(place).finalize();
    const made = await vegaEmbed(place, spec, {
      actions: false, renderer: "svg", config: config(colours), tooltip: { theme: "custom", disableDefaultStyle: false },
    });
    drawn.set(place, made);
    place.dataset.drawn = name;
    made.view.addEventListener("click", (event, item) => {
      const datum = item && item.datum;
      if (datum && datum.image) enlarge(datum.image, `Test datum ${datum.number}`);
    });
  }

  function enlarge(address, caption) {
    dialog.querySelector("img").src = address;
    dialog.querySelector("img").alt = caption;
    dialog.querySelector("p").textContent = caption;
    dialog.showModal();
  }

  for (const figure of document.querySelectorAll("figure[data-figure]")) {
    const buttons = [...figure.querySelectorAll("button[data-view]")], views = figure.querySelectorAll("[data-of]");
    const show = (name) => {
      buttons.forEach((one) => one.setAttribute("aria-pressed", String(one.dataset.view === name)));
      views.forEach((one) => (one.hidden = one.dataset.of !== name));
      for (const place of figure.querySelectorAll("[data-spec]")) {
        const hidden = place.closest("[hidden]");
        if (!hidden && place.dataset.drawn !== place.dataset.spec) draw(place, place.dataset.spec);
      }
    };
    buttons.forEach((one) => one.addEventListener("click", () => show(one.dataset.view)));
    show(buttons.length ? buttons[0].dataset.view : "");
  }
  for (const button of document.querySelectorAll("button.zoom"))
    button.addEventListener("click", () => {
      const image = button.querySelector("img");
      enlarge(image.src, image.alt);
    });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dark.addEventListener("change", () => drawn.forEach((_, place) => draw(place, place.dataset.spec)));
})();
