"use strict";
// Everything that comes from outside (names, settings, reasons) is set as text or as an attribute, never as markup.

const run = JSON.parse(document.getElementById("run").textContent);
const at = (id) => document.getElementById(id);
const KINDS = ["truth", "measurement", "restoration"];
const LABELS = { psnr: "PSNR / dB", ssim: "SSIM", baseline_psnr: "baseline PSNR", baseline_ssim: "baseline SSIM", gain: "gain / dB" };
const CHUNK = 100; // rows of the table that are made at a time

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const label = (column) => LABELS[column] ?? column.replaceAll("_", " ");
const number = (text) => (text === undefined || text === "" ? NaN : text === "inf" ? Infinity : text === "-inf" ? -Infinity : Number(text));
const isResidual = (column) => /residual|noise/.test(column);
// So many significant digits, also of what is small: 0.01052.
const digits = (value, count) => (value === 0 || Math.abs(value) >= 1e-5 ? value.toPrecision(count) : value.toExponential(count - 1));
const RATIO = "residual_per_noise";
const isFar = ({ values }) => isNumber(values[RATIO]) && !(number(values[RATIO]) >= 1 / run.far && number(values[RATIO]) <= run.far);
const isNumber = (text) => !Number.isNaN(number(text));

function shown(column, text) {
  if (!isNumber(text) || !Number.isFinite(number(text))) return text ?? "";
  const value = number(text);
  if (column === "sample" || column === "step" || Number.isInteger(value)) return text;
  if (column.includes("ssim") || column.includes("lpips")) return value.toFixed(3);
  if (column === "gain") return (value > 0 ? "+" : "") + value.toFixed(2);
  if (isResidual(column)) return digits(value, 4);
  return Math.abs(value) < 0.01 ? value.toExponential(1) : value.toFixed(Math.abs(value) >= 100 ? 1 : 2);
}

// Colours: as the system, light or dark.

const THEMES = { "light dark": "◐ auto", light: "☀ light", dark: "☾ dark" };

function setTheme(theme) {
  document.documentElement.style.colorScheme = theme;
  at("theme").textContent = THEMES[theme];
  at("theme").dataset.theme = theme;
  try {
    localStorage.setItem("report-theme", theme);
  } catch {
    // a page from a file may keep nothing
  }
}

function startTheme() {
  let theme = null;
  try {
    theme = localStorage.getItem("report-theme");
  } catch {
    // as above
  }
  setTheme(theme in THEMES ? theme : "light dark");
  at("theme").addEventListener("click", () => {
    const names = Object.keys(THEMES);
    setTheme(names[(names.indexOf(at("theme").dataset.theme) + 1) % names.length]);
  });
}

// Pictures.

function picture(row, kind) {
  return make("img", { src: row.pictures[kind], alt: kind, class: kind, draggable: "false", loading: "lazy" });
}

function fill(view, row, kind) {
  if (kind === "spread") view.replaceChildren(make("div", { class: "error" }, picture(row, kind)));
  else if (kind === "error") view.replaceChildren(make("div", { class: "error" }, picture(row, "truth"), picture(row, "restoration")));
  else view.replaceChildren(picture(row, kind));
  return view;
}

const MAPS = {
  error: "|restoration - truth|, the mean over the colours",
  spread: "deviation of this image's restorations, the mean over the colours",
};

function kindsOf({ pictures }) {
  const maps = [pictures.truth && pictures.restoration ? "error" : "", pictures.spread ? "spread" : ""];
  return [...KINDS.filter((kind) => pictures[kind]), ...maps.filter(Boolean)];
}

// The zoom that all views share: a factor, and where the picture's corner is, in percent of a view.

const zoom = { factor: 1, x: 0, y: 0 };

function zoomTo(factor, u = 0.5, v = 0.5) {
  const next = Math.min(Math.max(factor, 1), 32);
  zoom.x = 100 * u - ((100 * u - zoom.x) * next) / zoom.factor;
  zoom.y = 100 * v - ((100 * v - zoom.y) * next) / zoom.factor;
  zoom.factor = next;
  applyZoom();
}

function applyZoom() {
  const least = 100 * (1 - zoom.factor);
  zoom.x = Math.min(Math.max(zoom.x, least), 0);
  zoom.y = Math.min(Math.max(zoom.y, least), 0);
  const { style, classList } = at("viewer");
  style.setProperty("--zoom", zoom.factor);
  style.setProperty("--x", zoom.x);
  style.setProperty("--y", zoom.y);
  classList.toggle("zoomed", zoom.factor > 1);
  classList.toggle("close", zoom.factor >= 3);
  at("zoom").textContent = `${zoom.factor < 10 ? Math.round(10 * zoom.factor) / 10 : Math.round(zoom.factor)}×`;
}

function within(view, event) {
  const box = view.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

function makeZoomable(view) {
  view.addEventListener("dblclick", (event) => zoomTo(zoom.factor * 2, ...within(view, event)));
  view.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey && zoom.factor === 1) return; // the page scrolls
      event.preventDefault();
      zoomTo(zoom.factor * 2 ** (-event.deltaY / 300), ...within(view, event));
    },
    { passive: false },
  );
}

function makeMovable(view) {
  let last = null;
  view.addEventListener("pointerdown", (event) => {
    last = event;
    view.setPointerCapture(event.pointerId);
    view.classList.add("moving");
  });
  view.addEventListener("pointermove", (event) => {
    if (last === null) return;
    zoom.x += (100 * (event.clientX - last.clientX)) / view.clientWidth;
    zoom.y += (100 * (event.clientY - last.clientY)) / view.clientHeight;
    last = event;
    applyZoom();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    view.addEventListener(end, () => {
      last = null;
      view.classList.remove("moving");
    });
  }
}

function setGain() {
  const gain = Number(at("gain").value);
  const line = `${gain / 3} ${gain / 3} ${gain / 3} 0 0 `;
  at("matrix").setAttribute("values", `${line.repeat(3)}0 0 0 1 0`);
  at("gain_value").textContent = gain;
  for (const end of document.querySelectorAll(".scale_end")) end.textContent = (1 / gain).toPrecision(2);
}

// Before and after.

function setCut(percent) {
  at("cut").value = percent;
  at("stage").style.setProperty("--cut", `${at("cut").value}%`);
}

function startCompare() {
  const stage = at("stage");
  let dragging = false;
  const follow = (event) => setCut(100 * within(stage, event)[0]);
  stage.addEventListener("pointerdown", (event) => {
    dragging = true;
    stage.setPointerCapture(event.pointerId);
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => dragging && follow(event));
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => (dragging = false));
  at("cut").addEventListener("input", () => setCut(at("cut").value));
  at("before").addEventListener("change", () => showCompare(current));
  makeZoomable(stage);
}

function showCompare(row) {
  const stage = at("stage");
  const after = make("div", { class: "after" }, picture(row, "restoration"));
  const before = at("before").value;
  const tags = [make("span", { class: "tag" }, before), make("span", { class: "tag right" }, "restoration")];
  stage.replaceChildren(picture(row, before), after, ...tags);
}

// One image.

let order = [...run.rows.keys()]; // of the table
let current = null;

function show(row) {
  if (!row) return;
  current = row;
  const kinds = kindsOf(row);
  at("viewer").hidden = false;
  at("name").textContent = row.name;
  at("place").textContent = `${order.indexOf(run.rows.indexOf(row)) + 1} of ${run.rows.length}`;
  at("values").textContent = run.columns
    .filter((column) => row.values[column] && column !== "sample")
    .map((column) => `${label(column)} ${shown(column, row.values[column])}`)
    .join(" · ");
  at("gain_label").hidden = !kinds.some((kind) => kind in MAPS);
  at("panes").style.setProperty("--count", kinds.length);
  at("panes").replaceChildren(...kinds.map((kind) => pane(row, kind)));
  const before = kinds.filter((kind) => kind === "measurement" || kind === "truth").sort();
  const chosen = at("before").value;
  at("before").replaceChildren(...before.map((kind) => make("option", { value: kind }, kind)));
  if (before.includes(chosen)) at("before").value = chosen;
  at("compare").hidden = !row.pictures.restoration || before.length === 0;
  if (!at("compare").hidden) showCompare(row);
  at("estimate").hidden = !row.pictures.estimate;
  if (row.pictures.estimate) fill(at("estimate").querySelector(".view"), row, "estimate");
  showResidual(row);
  setGain();
  for (const line of at("images").tBodies[0].rows) line.classList.toggle("chosen", line.row === row);
}

function pane(row, kind) {
  const view = fill(make("div", { class: "view" }), row, kind);
  makeZoomable(view);
  makeMovable(view);
  if (kind === "restoration") {
    view.firstChild.addEventListener("load", (event) => {
      const { naturalWidth, naturalHeight } = event.target;
      if (naturalWidth) at("viewer").style.setProperty("--ratio", `${naturalWidth} / ${naturalHeight}`);
    });
  }
  const caption = make("figcaption", {}, make("span", kind in MAPS ? { title: MAPS[kind] } : {}, kind));
  if (kind in MAPS) {
    caption.append(make("span", { class: "group", title: "of the full range" }, "0", make("span", { class: "scale" }), make("span", { class: "scale_end" })));
  }
  return make("figure", { "data-kind": kind }, view, caption);
}

function showResidual(row) {
  const drawn = row.pictures.residual;
  at("residual").hidden = !drawn;
  at("plot").replaceChildren(...(drawn ? [make("img", { src: drawn, alt: "mean squared residual over the iterations" })] : []));
  const events = row.events ?? [];
  at("events").parentElement.parentElement.hidden = events.length === 0;
  fillTable(at("events"), run.event_columns, events);
}

function step(by) {
  const place = order.indexOf(run.rows.indexOf(current)) + by;
  if (place < 0 || place >= order.length) return;
  show(run.rows[order[place]]);
}

// Tables.

function fillTable(table, columns, lines, head = true) {
  const numeric = columns.map((_, place) => lines.every((line) => line[place] === "" || isNumber(line[place])));
  const kind = (place) => (numeric[place] ? "number" : "long");
  table.replaceChildren();
  if (head) table.createTHead().append(make("tr", {}, ...columns.map((name, place) => make("th", { class: kind(place) }, label(name)))));
  const body = table.createTBody();
  for (const line of lines) body.append(make("tr", {}, ...line.map((text, place) => make("td", { class: kind(place) }, text))));
}

let sorted = { column: null, sign: 1 };

function sortBy(column) {
  // The first click shows the worst first: that is what one looks for.
  const first = column === "name" || !/psnr|ssim|gain/.test(column) ? (column === "name" ? 1 : -1) : 1;
  sorted = { column, sign: sorted.column === column ? -sorted.sign : first };
  const key = (row) => (column === "name" ? row.name : number(row.values[column]));
  order = [...run.rows.keys()].sort((a, b) => {
    const [left, right] = [key(run.rows[a]), key(run.rows[b])];
    if (Number.isNaN(left) || Number.isNaN(right)) return Number.isNaN(left) - Number.isNaN(right) || a - b; // none: last
    return sorted.sign * (left < right ? -1 : left > right ? 1 : 0) || a - b;
  });
  for (const head of at("images").tHead.rows[0].cells) {
    if (head.dataset.column === column) head.setAttribute("aria-sort", sorted.sign > 0 ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  }
  at("images").tBodies[0].replaceChildren();
  moreRows();
  if (current) at("place").textContent = `${order.indexOf(run.rows.indexOf(current)) + 1} of ${run.rows.length}`;
}

function startList() {
  const kinds = [...KINDS, "error"].filter((kind) => run.rows.some((row) => kindsOf(row).includes(kind)));
  const heads = [{ column: "name", text: "image" }, ...run.columns.map((column) => ({ column, text: label(column), class: "number" }))];
  const line = make("tr", {}, ...kinds.map((kind) => make("th", { class: thumb(kind) }, kind === "measurement" ? "measured" : kind === "restoration" ? "restored" : kind)));
  for (const { column, text, ...rest } of heads) {
    const button = make("button", { type: "button" }, text);
    button.addEventListener("click", () => sortBy(column));
    line.append(make("th", { "data-column": column, ...rest }, button));
  }
  at("images").createTHead().append(line);
  at("images").createTBody();
  at("images").kinds = kinds;
  moreRows();
  new IntersectionObserver((seen) => seen[0].isIntersecting && moreRows(), { rootMargin: "600px" }).observe(at("end"));
}

const thumb = (kind) => `thumb ${kind === "error" ? "error_map" : kind}`;

function moreRows() {
  const body = at("images").tBodies[0];
  for (const index of order.slice(body.rows.length, body.rows.length + CHUNK)) body.append(listRow(run.rows[index]));
}

function listRow(row) {
  const own = kindsOf(row);
  const line = make("tr", row === current ? { class: "chosen" } : {});
  line.row = row;
  for (const kind of at("images").kinds) {
    line.append(make("td", { class: thumb(kind) }, own.includes(kind) ? fill(make("div", { class: "view" }), row, kind) : ""));
  }
  const name = make("a", { href: "#viewer" }, row.name);
  line.append(make("td", { class: "name" }, name));
  for (const column of run.columns) {
    const far = column === RATIO && isFar(row) ? { class: "number worse", title: "far from the noise" } : { class: "number" };
    line.append(make("td", far, shown(column, row.values[column])));
  }
  line.addEventListener("click", (event) => {
    event.preventDefault();
    show(row);
    at("viewer").scrollIntoView({ block: "start", behavior: "smooth" });
  });
  return line;
}

// The whole run.

function mean(column) {
  const values = run.rows.map((row) => number(row.values[column])).filter((value) => !Number.isNaN(value));
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : NaN;
}

function tile(value, text, below = "", kind = "") {
  return make("div", { class: "tile" }, make("b", {}, value), text, make("span", { class: kind }, below));
}

function startTiles() {
  at("tiles").append(tile(String(run.rows.length), run.rows.length === 1 ? "restoration" : "restorations"));
  for (const column of run.columns.filter((name) => name !== "sample" && name !== "gain" && !name.startsWith("baseline_"))) {
    if (Number.isNaN(mean(column))) continue;
    const more = mean(column) - mean(`baseline_${column}`);
    const text = isResidual(column) ? digits(more, 3) : more.toFixed(column === "ssim" ? 3 : 2);
    const below = Number.isNaN(more) ? "" : ` (${more > 0 ? "+" : ""}${text})`;
    // A residual is best where it is the noise, neither above nor below: only quality has a colour.
    const gain = column === "psnr" || column === "ssim" ? more : column.startsWith("lpips") ? -more : 0;
    at("tiles").append(tile(shown(column, String(mean(column))), label(column), below, gain > 0 ? "better" : gain < 0 ? "worse" : ""));
  }
  const far = run.rows.filter(isFar).length;
  if (far) at("tiles").append(tile(String(far), "", "far from the noise", "worse"));
  if (run.failures.length) at("tiles").append(tile(String(run.failures.length), "", "failed", "worse"));
}

function start() {
  startTheme();
  if (run.rows.some((row) => isNumber(row.values.psnr) && isNumber(row.values.baseline_psnr))) {
    run.columns.splice(run.columns.indexOf("baseline_psnr") + 1, 0, "gain");
    for (const { values } of run.rows) values.gain = String(number(values.psnr) - number(values.baseline_psnr));
  }
  at("title").textContent = run.title;
  at("subtitle").textContent = run.subtitle;
  at("notes").textContent = run.notes.join(" ");
  startTiles();
  startList();
  startCompare();
  at("list").hidden = run.rows.length === 0;
  at("failures").hidden = run.failures.length === 0;
  fillTable(at("failures").querySelector("table"), run.failure_columns, run.failures);
  fillTable(at("settings").querySelector("table"), ["setting", "value"], run.settings, false);
  at("previous").addEventListener("click", () => step(-1));
  at("next").addEventListener("click", () => step(1));
  at("zoom_in").addEventListener("click", () => zoomTo(zoom.factor * 2));
  at("zoom_out").addEventListener("click", () => zoomTo(zoom.factor / 2));
  at("fit").addEventListener("click", () => zoomTo(1));
  at("gain").addEventListener("input", setGain);
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  makeZoomable(at("estimate").querySelector(".view"));
  makeMovable(at("estimate").querySelector(".view"));
  show(run.rows[0]);
}

start();
