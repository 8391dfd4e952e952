"use strict";
// The table of cases, and the pictures of a case. Text reaches the page as text only, never as markup.

const report = JSON.parse(document.getElementById("data").textContent);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const shown = (value, digits) => value === null ? "\u2013" : value.toFixed(digits);
const volume = value => report.unit === "ml"
  ? value.toLocaleString("en", { minimumSignificantDigits: 4, maximumSignificantDigits: 4 })
  : value.toLocaleString("en");

// --- the table

function columns() {
  const found = [
    { title: "case", value: row => row.case, text: row => row.case },
    { title: "fold", value: row => row.fold, text: row => row.fold },
  ];
  report.classes.forEach((name, i) => found.push(
    { title: report.classes.length > 1 ? `Dice ${name}` : "Dice", value: row => row.dice[i],
      text: row => shown(row.dice[i], 3) }));
  if (report.classes.length > 1) found.push(
    { title: "mean Dice", value: row => row.mean, text: row => shown(row.mean, 3) });
  report.classes.forEach((name, i) => ["true", "predicted"].forEach((which, j) => found.push(
    { title: `${name}, ${which} (${report.unit})`, value: row => row.volumes[i][j],
      text: row => volume(row.volumes[i][j]), kind: "volume" })));
  return found;
}

const names = new Intl.Collator(undefined, { numeric: true });  // made once: thousands of rows are compared by it

// Numbers by size, text by its numbers and letters; what is not known comes last in both directions.
function compare(a, b, direction) {
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === "number" ? a - b : names.compare(a, b);
  return direction * order;
}

function caseTable() {
  const all = columns();
  const body = element("tbody");
  const rows = report.cases.map((row, index) => element(
    "tr", { tabindex: "0", "data-case": index, "aria-selected": "false", onclick: () => selectCase(index),
            onkeydown: event => { if (event.key === "Enter") selectCase(index); } },
    ...all.map(column => element("td", { class: column.kind || "" }, column.text(row)))));
  body.append(...rows);

  const heads = all.map(column => element("th", { scope: "col", class: column.kind || "" }));
  function sortBy(column) {
    const direction = heads[column].getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach(head => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    const value = all[column].value;
    const order = report.cases.map((_, index) => index).sort(
      (a, b) => compare(value(report.cases[a]), value(report.cases[b]), direction) || a - b);
    body.append(...order.map(index => rows[index]));
  }
  heads.forEach((head, i) => head.append(
    element("button", { type: "button", onclick: () => sortBy(i) }, all[i].title)));

  const name = element("input", { type: "search", id: "filter-name", autocomplete: "off", oninput: filter });
  const most = element("input", { type: "number", id: "filter-dice", min: "0", max: "1", step: "0.05",
                                  oninput: filter });
  const count = element("span", { class: "quiet", role: "status" });
  function filter() {
    const wanted = name.value.trim().toLowerCase();
    const limit = most.value === "" ? null : Number(most.value);
    let visible = 0;
    report.cases.forEach((row, index) => {
      const fits = row.case.toLowerCase().includes(wanted)
        && (limit === null || (row.mean !== null && row.mean <= limit));
      rows[index].hidden = !fits;
      visible += fits;
    });
    count.textContent = `${visible} of ${report.cases.length} cases`;
  }
  filter();

  const table = element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body);
  const volumes = element("input", { type: "checkbox", id: "show-volumes",
                                     onchange: () => table.classList.toggle("no-volumes", !volumes.checked) });
  volumes.checked = report.classes.length <= 4;
  table.classList.toggle("no-volumes", !volumes.checked);
  return [
    element("div", { class: "controls" }, element("label", {}, "Name has ", name),
            element("label", {}, "Mean Dice at most ", most), element("label", {}, volumes, "volumes"), count),
    element("div", { class: "cases", tabindex: "0", role: "region", "aria-label": "Table of cases" }, table),
    element("div", { id: "case", "aria-live": "polite" },
            element("p", { class: "quiet" }, "Click on a case to see it, on a heading to sort."))];
}

function selectCase(index) {
  document.querySelectorAll(".cases tbody tr").forEach(
    row => row.setAttribute("aria-selected", String(Number(row.dataset.case) === index)));
  const place = document.getElementById("case");
  place.replaceChildren(caseView(index, "h3"));
  place.scrollIntoView({ block: "nearest" });
}

// --- one case

function caseView(index, heading) {
  const row = report.cases[index];
  const dice = report.classes.map((name, i) => `${name} ${shown(row.dice[i], 3)}`).join(", ");
  const view = element("article", { class: "case" }, element(
    "header", {}, element(heading, {}, `${row.case}, fold ${row.fold}`),
    element("span", { class: "quiet" }, `Dice ${dice}`), ...viewerButton(index)));
  if (row.slices.length === 0) {
    view.append(element("p", { class: "quiet" }, "No pictures of this case: see what is left out."));
  }
  row.slices.forEach(slice => view.append(...sliceView(row, slice)));
  if (row.slices.length > 0) view.append(legend());
  return view;
}

function viewerButton(index) {
  if (report.cases[index].embedded.length === 0) return [];
  return [element("button", { type: "button", onclick: () => openInViewer(index) }, "Scroll it in the viewer")];
}

function sliceView(row, slice) {
  const where = slice.of > 1 ? `slice ${slice.slice} of ${slice.of}` : "";
  const says = what => [row.case, where, what].filter(Boolean).join(", ");
  const picture = (...inside) => {
    const box = element("div", { class: "picture" }, ...inside);
    box.style.aspectRatio = slice.aspect;
    return box;
  };
  const image = () => element("img", { src: slice.image, alt: "" });
  const panel = (caption, box) => element("figure", {}, box, element("figcaption", {}, caption));
  const uncertainty = slice.entropy !== null
    ? picture(element("img", { src: slice.entropy, alt: says("uncertainty") }))
    : picture(element("span", { class: "missing" }, "No probabilities: validate with --npz."));
  uncertainty.classList.toggle("empty", slice.entropy === null);
  const heading = [where, `${slice.wrong} wrong ${slice.of > 1 ? "voxels" : "pixels"}`].filter(Boolean).join(", ");
  return [
    element("p", { class: "quiet" }, heading),
    element("div", { class: slice.mutual_information === null ? "panels" : "panels five" },
            panel("image", picture(element("img", { src: slice.image, alt: says("image") }))),
            panel("truth", picture(image(), element("img", { src: slice.truth, alt: says("truth over the image") }))),
            panel("prediction", picture(image(), element("img", { src: slice.prediction,
                                                                  alt: says("prediction over the image") }))),
            panel(`uncertainty (entropy, 0 to ${report.highest_entropy} nats)`, uncertainty),
            ...disagreement(slice, picture, panel, says))];
}

function disagreement(slice, picture, panel, says) {
  if (slice.mutual_information === null) return [];
  return [panel(`disagreement (mutual information, 0 to ${slice.most_mutual_information} nats)`,
                picture(element("img", { src: slice.mutual_information, alt: says("disagreement of the draws") })))];
}

function legend() {
  return element("ul", { class: "legend" }, ...report.legend.map(entry => {
    const swatch = element("span", { class: "swatch" });
    swatch.style.background = entry.colour;
    return element("li", {}, swatch, entry.name);
  }));
}

// --- fill the page

const tablePlace = document.getElementById("case-table");
if (tablePlace) tablePlace.append(...caseTable());
for (const [id, indices] of [["worst", report.worst], ["best", report.best]]) {
  const place = document.getElementById(id);
  if (place) place.append(...indices.map(index => caseView(index, "h4")));
}
