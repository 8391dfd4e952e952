"use strict";
// The volume viewer: NiiVue is unpacked when it is first wanted; its volumes lie in the page.

const OVERLAYS = ["truth", "prediction", "entropy"];
const LAYER_NAMES = { truth: "truth", prediction: "prediction", entropy: "uncertainty" };
const viewer = { niivue: null, layers: [], busy: Promise.resolve() };

const embeddedText = id => document.getElementById(id).textContent;

async function unpacked(base64) {
  const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

function viewerApp() {
  const place = document.getElementById("viewer-app");
  if (!place) return;
  const missing = document.createElement("canvas").getContext("webgl2") === null ? "WebGL2"
    : typeof DecompressionStream === "undefined" ? "DecompressionStream" : null;
  if (missing) {
    place.append(element("p", { class: "notice", id: "viewer-missing" },
                         `This browser has no ${missing}, which the viewer needs. All else on this page works.`));
    return;
  }
  const indices = report.cases.map((_, index) => index).filter(index => report.cases[index].embedded.length > 0);
  const select = element("select", { id: "viewer-case", onchange: () => openInViewer(Number(select.value)) },
                         element("option", { value: "", disabled: "", selected: "" }, "choose a case"),
                         ...indices.map(index => element("option", { value: index },
                           `${report.cases[index].case}, fold ${report.cases[index].fold}`)));
  const boxes = OVERLAYS.map(name => {
    const box = element("input", { type: "checkbox", id: `viewer-${name}`, onchange: showLayers });
    box.checked = name === "prediction";
    return element("label", {}, box, LAYER_NAMES[name]);
  });
  const opacity = element("input", { type: "range", id: "viewer-opacity", min: "0", max: "1", step: "0.05",
                                     value: "0.5", oninput: showLayers });
  const planes = element("select", { id: "viewer-planes", onchange: setPlanes },
                         ...["three planes", "axial", "coronal", "sagittal"].map(
                           (name, i) => element("option", { value: i }, name)));
  place.append(
    element("div", { class: "controls" }, element("label", {}, "Case ", select), element("label", {}, "View ", planes),
            ...boxes, element("label", {}, "Opacity ", opacity)),
    element("div", { class: "canvas", hidden: "" }, element("canvas", { id: "viewer-canvas", tabindex: "0",
                                                           "aria-label": "Volume viewer" })),
    element("p", { class: "where quiet", id: "viewer-where", role: "status" }, "No case is open."), legend());
}

async function startNiivue() {
  document.querySelector(".canvas").hidden = false;
  document.body.append(element("script", {}, await unpacked(embeddedText("viewer-code"))));
  const made = new niivue.Niivue({
    backColor: [0, 0, 0, 1], crosshairColor: [1, 1, 1, 0.6], crosshairWidth: 0.6, crosshairWidthUnit: "percent",
    dragAndDropEnabled: false, isNearestInterpolation: true, isResizeCanvas: true, loadingText: "", logLevel: "error",
    multiplanarShowRender: niivue.SHOW_RENDER.NEVER });
  await made.attachToCanvas(document.getElementById("viewer-canvas"));
  made.onLocationChange = place => {
    document.getElementById("viewer-where").textContent = `${viewer.name}: ${described(place)}`;
  };
  return made;
}

// Millimetres to the right, front and top, and what each layer holds there.
function described(place) {
  const values = place.values.slice(0, viewer.layers.length).map(({ value }, i) => {
    const name = viewer.layers[i];
    if (name === "image") return `image ${value} of 255`;
    if (name === "entropy") return `uncertainty ${(value / 255 * report.highest_entropy).toFixed(2)} nats`;
    const label = report.legend.find(entry => entry.value === value);
    return `${name} ${label ? label.name : "background"}`;
  });
  return [Array.from(place.mm.slice(0, 3), mm => mm.toFixed(1)).join(", ") + " mm", ...values].join("; ");
}

// One at a time: a case chosen while another one loads waits for it.
function openInViewer(index) {
  viewer.busy = viewer.busy.then(() => loadCase(index)).catch(error => {
    document.getElementById("viewer-where").textContent = `The viewer failed: ${error.message}`;
  });
  document.getElementById("viewer").scrollIntoView({ block: "start" });
  return viewer.busy;
}

async function loadCase(index) {
  if (!document.getElementById("viewer-canvas")) return;
  const row = report.cases[index];
  document.getElementById("viewer-case").value = index;
  document.getElementById("viewer-where").textContent = `Loading ${row.case} \u2026`;
  if (viewer.niivue === null) viewer.niivue = await startNiivue();
  while (viewer.niivue.volumes.length > 0) viewer.niivue.removeVolume(viewer.niivue.volumes[0]);
  viewer.name = row.case;
  viewer.layers = ["image", ...OVERLAYS.filter(name => row.embedded.includes(name))];
  for (const name of viewer.layers) {
    const volume = await niivue.NVImage.loadFromBase64({
      base64: embeddedText(`volume-${index}-${name}`), name: `${name}.nii.gz`,
      colormap: name === "entropy" ? "inferno" : "gray",
      opacity: name === "image" ? 1 : 0, cal_min: name === "entropy" ? 8 : 0, cal_max: 255 });
    if (name === "truth" || name === "prediction") volume.setColormapLabel(labelColours());
    viewer.niivue.addVolume(volume);
  }
  OVERLAYS.forEach(name => { document.getElementById(`viewer-${name}`).disabled = !viewer.layers.includes(name); });
  setPlanes();
  showLayers();
  document.getElementById("viewer-where").textContent = `${row.case} is open: click into the picture.`;
}

function labelColours() {
  const entries = [{ value: 0, name: "background", colour: "#000000" }, ...report.legend];
  const channel = at => entries.map(entry => parseInt(entry.colour.slice(at, at + 2), 16));
  return { R: channel(1), G: channel(3), B: channel(5), A: entries.map(entry => entry.value === 0 ? 0 : 255),
           I: entries.map(entry => entry.value), labels: entries.map(entry => entry.name) };
}

function showLayers() {
  if (viewer.niivue === null) return;
  const opacity = Number(document.getElementById("viewer-opacity").value);
  viewer.layers.forEach((name, i) => {
    if (i > 0) viewer.niivue.setOpacity(i, document.getElementById(`viewer-${name}`).checked ? opacity : 0);
  });
}

function setPlanes() {
  if (viewer.niivue === null) return;
  const { sliceTypeMultiplanar, sliceTypeAxial, sliceTypeCoronal, sliceTypeSagittal } = viewer.niivue;
  const kinds = [sliceTypeMultiplanar, sliceTypeAxial, sliceTypeCoronal, sliceTypeSagittal];
  viewer.niivue.setSliceType(kinds[Number(document.getElementById("viewer-planes").value)]);
}

viewerApp();
