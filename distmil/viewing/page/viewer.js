// The page: it keeps one state, shows it, and writes it into the address, which is the permanent link to the view.
import { FLAGS, readView, writeView } from "./address.js";
import { DrawPanel } from "./draw_panel.js";
import { Pane, bind, read } from "./pane.js";
import { fill, markTop, offerMaps, showControls, showList, showProblem, showSlide, topRank } from "./panel.js";
import { chosen, filtersOf, verdict } from "./slides.js";

const $ = (id) => document.getElementById(id);
const state = { slide: "", map: "fused", opacity: 0.5, from: 0, colours: "jet", regions: true, drawn: true, beside: false, at: null };
const pane = new Pane($("zoom"), { hasNavigator: window.innerWidth > 700 });
let run, slides, beside = null, others = [], shown = [];
const panel = new DrawPanel(pane, { changed: () => { pane.paintOutlines(state); sayOutlines(); } });
window.view = { state, pane, panel, viewer: pane.viewer, overlay: pane.overlay }; // for whoever tests or scripts the page

const names = () => ["none", ...run.scores];
const panes = () => (state.beside && beside ? [pane, beside] : [pane]);

function writeAddress() {
  const hash = writeView(state, pane.place());
  history.replaceState(null, "", hash);
  $("link").href = hash;
}

// The slide

async function openSlide(slideId) {
  if (!slides.some((one) => one.slide_id === slideId)) return showProblem(`There is no slide ${slideId} in this run.`);
  state.slide = slideId;
  panel.take(slideId, null);
  list();
  showPanes();
  const { at } = state;
  try {
    if (!await pane.open(slideId, at, () => { state.at = null; writeAddress(); })) return;
    showProblem("");
    showSlide(pane.slide, pane.folder(slideId), jump);
    await Promise.all([showMap(), showOutlines(), openBeside()]);
  } catch (error) {
    if (state.slide === slideId) { pane.close(); showProblem(`${slideId}: ${error.message}`); }
  }
}

const showPanes = () => $("panes").classList.toggle("two", Boolean(beside && state.beside));

/** Open the other run's prediction of the slide on the right. */
async function openBeside() {
  showPanes();
  if (!beside || !state.beside) return;
  const other = others.find((one) => one.slide_id === state.slide);
  $("beside-words").textContent = `${beside.run.name}: ${other ? verdict(other) : `no prediction of ${state.slide}`}`;
  if (!other) return beside.close();
  if (beside.slide?.slide_id !== state.slide && !await beside.open(state.slide, null, () => beside.goTo(pane.place()))) return;
  await Promise.all([beside.showMap(state), beside.readOutlines("regions", "regions")]);
  beside.paintOutlines(state);
}

async function showMap() {
  await Promise.all(panes().map((one) => one.slide && one.showMap(state)));
  const counted = pane.slide && state.map !== "none";
  $("shown").textContent = counted
    ? `${pane.shownPatches} of ${pane.slide.num_patches} patches have a value of ${state.map} from ${state.from.toFixed(2)}.`
    : "No map is shown.";
}

async function showOutlines() {
  const { slide } = pane;
  const [, drawn] = [await pane.readOutlines("regions", "regions"), await pane.readOutlines("drawn", "outlines")];
  if (pane.slide !== slide || !drawn) return;
  panel.take(slide.slide_id, drawn);
}

function sayOutlines() {
  const { regions, drawn } = pane.outlines;
  const count = (found, words) => `${found.length} ${words}${found.length === 1 ? "" : "s"}`;
  const failed = panel.drawing?.unread ? `; they cannot be read: ${panel.drawing.unread}` : "";
  $("outlines").textContent = regions && drawn ? `${count(regions, "predicted region")}, ${count(drawn, "drawn outline")}${failed}` : "";
}

function jump(rank) {
  pane.jump(pane.slide.top[rank]);
  markTop(rank);
}

// What is shown

function list() {
  shown = chosen(slides, { search: $("search").value, filter: $("filter").value, sort: $("sort").value });
  showList(shown, { total: slides.length, noun: run.noun, current: state.slide, open: openSlide });
}

/** Change the state, and show it. Only a map that was not shown before asks the server for anything. */
async function change(values) {
  Object.assign(state, values);
  showControls(state, run.colours);
  writeAddress();
  panes().forEach((one) => one.paintOutlines(state));
  if ("beside" in values) await openBeside();
  if (pane.slide) await showMap();
}

function sayUnder(position) {
  const image = pane.viewer.world.getItemAt(0);
  if (!image || !pane.slide) return;
  const { x, y } = image.viewerElementToImageCoordinates(position);
  const values = panes().map((one) => one.slide?.slide_id === state.slide && one.valueAt(state.map, x, y)).filter(Number.isFinite);
  const words = values.length ? `, ${state.map} ${values.map((value) => value.toFixed(2)).join(" and ")}` : "";
  $("under").textContent = `x ${Math.round(x)}, y ${Math.round(y)} px${words}`;
}

// Controls

function step(by) {
  const i = shown.findIndex((one) => one.slide_id === state.slide);
  const next = shown[Math.min(shown.length - 1, Math.max(0, i + by))];
  if (next) openSlide(next.slide_id);
}

const KEYS = {
  n: () => step(1), p: () => step(-1), h: () => pane.home(), "?": () => { $("keys").open = !$("keys").open; },
  r: () => change({ regions: !state.regions }), d: () => change({ drawn: !state.drawn }), c: () => beside && change({ beside: !state.beside }),
  "+": () => pane.zoomBy(1.5), "-": () => pane.zoomBy(1 / 1.5),
  t: () => pane.slide && jump((topRank() + 1) % pane.slide.top.length), "/": () => $("search").focus(),
};

function press(event) {
  const isTyping = /INPUT|SELECT/.test(event.target.tagName) && !/checkbox|radio|range/.test(event.target.type);
  if (event.altKey || isTyping) return;
  const isControl = event.ctrlKey || event.metaKey;
  const map = /^\d$/.test(event.key) && names()[event.key];
  if (panel.press(event.key, isControl)) event.preventDefault();
  else if (isControl) return;
  else if (map) change({ map });
  else if (event.key in KEYS) KEYS[event.key]();
  else return;
  event.preventDefault();
  event.stopPropagation();
}

function wire() {
  for (const name of ["search", "filter", "sort"]) $(name).addEventListener("input", list);
  for (const name of ["opacity", "from"]) $(name).addEventListener("input", () => change({ [name]: $(name).valueAsNumber }));
  $("colours").addEventListener("input", () => change({ colours: $("colours").value }));
  for (const name of FLAGS) $(name).addEventListener("input", () => change({ [name]: $(name).checked }));
  for (const [id, key] of [["in", "+"], ["out", "-"], ["home", "h"]]) $(id).addEventListener("click", KEYS[key]);
  window.addEventListener("keydown", press, true);
  pane.viewer.addHandler("animation-finish", writeAddress);
  $("zoom").addEventListener("pointermove", (event) => {
    const box = $("zoom").getBoundingClientRect();
    sayUnder(new OpenSeadragon.Point(event.clientX - box.left, event.clientY - box.top));
  });
  window.addEventListener("hashchange", () => { // an address that was typed or followed
    const wanted = readView(location.hash, state, Object.keys(run.colours));
    const isOther = wanted.slide !== state.slide;
    if (!isOther && wanted.at) pane.goTo(wanted.at);
    change(wanted);
    if (isOther) openSlide(wanted.slide);
  });
}

async function start() {
  [run, slides] = await Promise.all([read("run.json"), read("slides.json")]);
  pane.run = run;
  document.title = `${run.name}: distmil view`;
  $("run").textContent = run.name;
  fill("filter", filtersOf(slides, run.classes));
  fill("colours", Object.keys(run.colours).map((name) => [name, name]));
  offerMaps(names(), (map) => change({ map }));
  if (run.beside) {
    beside = new Pane($("beside-zoom"), { prefix: "beside/" });
    [beside.run, others] = await Promise.all([read("beside/run.json"), read("beside/slides.json")]);
    bind(pane, beside);
    beside.viewer.addHandler("animation-finish", writeAddress);
    window.view.beside = beside;
    $("beside-label").hidden = false;
    $("beside-name").textContent = run.beside;
  }
  if (run.draw) panel.start(run.draw);
  Object.assign(state, readView(location.hash, state, Object.keys(run.colours)));
  if (!names().includes(state.map)) state.map = "fused";
  wire();
  showControls(state, run.colours);
  await openSlide(state.slide || slides[0].slide_id);
}

start().catch((error) => showProblem(`The page cannot be shown: ${error.message}`));
