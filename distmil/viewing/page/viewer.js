// The page: it keeps one state, shows it, and writes it into the address, which is the permanent link to the view.
import { Overlay, colourMap, pathOf, readMap } from "./overlay.js";
import { chosen, filtersOf, verdict } from "./slides.js";

const $ = (id) => document.getElementById(id);
const state = { slide: "", map: "fused", opacity: 0.5, from: 0, colours: "jet", regions: true, drawn: true, at: null };
let run, slides, shown = [], slide, maps = {}, paths = {}, turn = 0;

const viewer = OpenSeadragon({
  element: $("zoom"), drawer: "canvas", showNavigationControl: false, showNavigator: window.innerWidth > 700,
  navigatorPosition: "BOTTOM_RIGHT", maxZoomPixelRatio: 4, animationTime: 0.4, imageSmoothingEnabled: true,
  gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
});
const overlay = new Overlay(viewer);
window.view = { viewer, overlay, state }; // for whoever tests or scripts the page

const read = async (address) => {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
};
const folder = () => `slide-${state.slide}`;

// The address

function readAddress() {
  const values = new URLSearchParams(location.hash.slice(1));
  const number = (name, low, high, otherwise) => {
    const value = Number.parseFloat(values.get(name));
    return Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : otherwise;
  };
  const wanted = { slide: values.get("slide") ?? "" };
  wanted.map = values.get("map") ?? state.map;
  wanted.opacity = number("opacity", 0, 1, state.opacity);
  wanted.from = number("from", 0, 1, state.from);
  wanted.colours = values.get("colours") in run.colours ? values.get("colours") : state.colours;
  for (const name of ["regions", "drawn"]) wanted[name] = values.has(name) ? values.get(name) === "1" : state[name];
  const at = ["x", "y", "zoom"].map((name) => number(name, -1e9, 1e9, null));
  wanted.at = at.includes(null) || at[2] <= 0 ? null : at;
  return wanted;
}

function writeAddress() {
  const values = new URLSearchParams({ slide: state.slide, map: state.map, opacity: state.opacity, from: state.from,
    colours: state.colours, regions: Number(state.regions), drawn: Number(state.drawn) });
  const image = viewer.world.getItemAt(0);
  if (image) {
    const centre = image.viewportToImageCoordinates(viewer.viewport.getCenter(true));
    const zoom = image.viewportToImageZoom(viewer.viewport.getZoom(true));
    Object.entries({ x: centre.x.toFixed(1), y: centre.y.toFixed(1), zoom: zoom.toPrecision(4) })
      .forEach(([name, value]) => values.set(name, value));
  }
  history.replaceState(null, "", `#${values}`);
  $("link").href = `#${values}`;
}

// The slide

function source() {
  const count = slide.num_levels;
  const longest = Math.max(slide.width, slide.height);
  const finest = () => {
    let level = count - 1;
    while (run.max_px && level > 0 && Math.ceil(longest / 2 ** (count - 1 - level)) > run.max_px) level -= 1;
    return level;
  };
  const last = finest();
  return {
    width: slide.width, height: slide.height, tileSize: slide.tile_px, minLevel: 0, maxLevel: count - 1,
    getTileUrl: (level, x, y) => `slide-${slide.slide_id}/tiles/${level}/${x}_${y}.jpg`,
    tileExists: (level, x, y) => {
      const factor = 2 ** (count - 1 - level) * slide.tile_px;
      return level <= last && x >= 0 && y >= 0 && x < Math.ceil(slide.width / factor) && y < Math.ceil(slide.height / factor);
    },
  };
}

function goTo([x, y, zoom]) {
  const image = viewer.world.getItemAt(0);
  viewer.viewport.zoomTo(image.imageToViewportZoom(zoom), null, true);
  viewer.viewport.panTo(image.imageToViewportCoordinates(new OpenSeadragon.Point(x, y)), true);
}

async function openSlide(slideId) {
  const mine = ++turn;
  if (!slides.some((one) => one.slide_id === slideId)) return problem(`There is no slide ${slideId} in this run.`);
  state.slide = slideId;
  Object.assign(overlay, { map: null, lines: [], box: null });
  [maps, paths] = [{}, {}];
  showList();
  try {
    const found = await read(`${folder()}/slide.json`);
    if (mine !== turn) return;
    slide = found;
    problem("");
    const at = state.at;
    viewer.addOnceHandler("open", () => { if (at) goTo(at); state.at = null; writeAddress(); });
    viewer.open(source());
    showSlide();
    await Promise.all([showMap(), showOutlines()]);
  } catch (error) {
    if (mine === turn) { viewer.close(); problem(`${slideId}: ${error.message}`); }
  }
}

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

// What is shown

function showList() {
  shown = chosen(slides, { search: $("search").value, filter: $("filter").value, sort: $("sort").value });
  $("count").textContent = `${shown.length} of ${slides.length} ${run.noun}s`;
  $("slides").replaceChildren(...shown.map((one) => {
    const button = Object.assign(document.createElement("button"), { textContent: one.slide_id });
    const words = Object.assign(document.createElement("small"), { textContent: [verdict(one), ...Object.values(one.extra)].join(", ") });
    words.classList.toggle("wrong", Boolean(one.label) && one.label !== one.predicted);
    button.append(words);
    button.dataset.slide = one.slide_id;
    button.setAttribute("aria-current", String(one.slide_id === state.slide));
    button.addEventListener("click", () => openSlide(one.slide_id));
    const row = document.createElement("li");
    row.append(button);
    return row;
  }));
}

function showSlide() {
  $("name").textContent = slide.slide_id;
  $("words").textContent = slide.words;
  $("numbers").textContent = `${slide.num_abnormal} of ${slide.num_patches} patches have a probability from ${slide.threshold.toFixed(2)}.`;
  $("top").replaceChildren(...slide.top.map((patch, rank) => {
    const button = document.createElement("button");
    const words = `patch ${rank + 1}: ${slide.map.scores.map((name) => `${name} ${patch[name].toFixed(2)}`).join(", ")}`;
    button.title = words;
    const image = Object.assign(document.createElement("img"), { src: `${folder()}/top/${rank}.jpg`, alt: words, loading: "lazy" });
    button.append(image, patch.fused.toFixed(2));
    button.addEventListener("click", () => jump(rank));
    const row = document.createElement("li");
    row.append(button);
    return row;
  }));
}

function jump(rank) {
  const patch = slide.top[rank];
  overlay.box = patch;
  const half = patch.extent_px / 2;
  const zoom = Math.min(1, $("zoom").clientWidth / (4 * patch.extent_px));
  goTo([patch.x + half, patch.y + half, zoom]);
  document.querySelectorAll("#top button").forEach((button, i) => button.setAttribute("aria-current", String(i === rank)));
  overlay.draw();
}

async function showMap() {
  const mine = turn;
  if (state.map !== "none" && !(state.map in maps)) {
    const values = await readMap(`${folder()}/maps/${state.map}.png`, slide.map);
    if (mine !== turn) return;
    maps[state.map] = values;
  }
  paintMap();
}

function paintMap() {
  const values = maps[state.map];
  overlay.map = null;
  $("shown").textContent = "No map is shown.";
  if (values) {
    const { canvas, shown: count } = colourMap(values, slide.map, { table: run.colours[state.colours], from: state.from });
    overlay.map = { canvas, ...slide.map, opacity: state.opacity };
    $("shown").textContent = `${count} of ${slide.num_patches} patches have a value of ${state.map} from ${state.from.toFixed(2)}.`;
  }
  overlay.draw();
}

async function showOutlines() {
  const mine = turn;
  for (const [name, file] of [["regions", "regions"], ["drawn", "outlines"]]) {
    const found = await read(`${folder()}/${file}.geojson`).catch((error) => ({ features: [], error: error.message }));
    if (mine !== turn) return;
    paths[name] = { path: pathOf(found), count: found.features.length, error: found.error };
  }
  const failed = paths.drawn.error ? `; outlines cannot be read: ${paths.drawn.error}` : "";
  $("outlines").textContent = `${paths.regions.count} predicted regions, ${paths.drawn.count} groups of drawn outlines${failed}`;
  paintOutlines();
}

function paintOutlines() {
  overlay.lines = [["regions", []], ["drawn", [8, 6]]]
    .filter(([name]) => state[name] && paths[name])
    .map(([name, dash]) => ({ path: paths[name].path, dash }));
  overlay.draw();
}

function showControls() {
  for (const name of ["opacity", "from"]) {
    $(name).value = state[name];
    $(`${name}-says`).textContent = state[name].toFixed(2);
  }
  $("colours").value = state.colours;
  for (const name of ["regions", "drawn"]) $(name).checked = state[name];
  document.querySelectorAll("#maps input").forEach((input) => { input.checked = input.value === state.map; });
  const bar = $("bar").getContext("2d");
  const picture = new ImageData(256, 1);
  run.colours[state.colours].forEach((colour, i) => picture.data.set([...colour, 255], 4 * i));
  bar.putImageData(picture, 0, 0);
}

/** Change the state, and show it. Only a map that was not shown before asks the server for anything. */
async function change(values) {
  Object.assign(state, values);
  showControls();
  writeAddress();
  paintOutlines();
  if (slide) await showMap();
}

function sayUnder(position) {
  const image = viewer.world.getItemAt(0);
  if (!image || !slide) return;
  const { x, y } = image.viewerElementToImageCoordinates(position);
  const [column, row] = [(x - slide.map.x) / slide.map.step, (y - slide.map.y) / slide.map.step].map(Math.floor);
  const isInside = column >= 0 && row >= 0 && column < slide.map.width && row < slide.map.height;
  const value = isInside ? maps[state.map]?.[row * slide.map.width + column] : undefined;
  const words = value === undefined || value < 0 ? "" : `, ${state.map} ${(value / 255).toFixed(2)}`;
  $("under").textContent = `x ${Math.round(x)}, y ${Math.round(y)} px${words}`;
}

// Controls

function step(by) {
  const i = shown.findIndex((one) => one.slide_id === state.slide);
  const next = shown[Math.min(shown.length - 1, Math.max(0, i + by))];
  if (next) openSlide(next.slide_id);
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT/.test(event.target.tagName) && event.target.type !== "checkbox") return;
  const names = ["none", ...(slide?.map.scores ?? [])];
  const rank = [...document.querySelectorAll("#top button")].findIndex((one) => one.getAttribute("aria-current") === "true");
  const keys = {
    n: () => step(1), p: () => step(-1), r: () => change({ regions: !state.regions }), d: () => change({ drawn: !state.drawn }),
    h: () => viewer.viewport.goHome(), "+": () => viewer.viewport.zoomBy(1.5), "-": () => viewer.viewport.zoomBy(1 / 1.5),
    t: () => slide && jump((rank + 1) % slide.top.length), "/": () => $("search").focus(),
    ...Object.fromEntries(names.map((name, i) => [String(i), () => change({ map: name })])),
  };
  if (!(event.key in keys)) return;
  event.preventDefault();
  event.stopPropagation();
  keys[event.key]();
}

function wire() {
  for (const name of ["search", "filter", "sort"]) $(name).addEventListener("input", showList);
  for (const name of ["opacity", "from"]) $(name).addEventListener("input", () => change({ [name]: $(name).valueAsNumber }));
  $("colours").addEventListener("input", () => change({ colours: $("colours").value }));
  for (const name of ["regions", "drawn"]) $(name).addEventListener("input", () => change({ [name]: $(name).checked }));
  $("in").addEventListener("click", () => viewer.viewport.zoomBy(1.5));
  $("out").addEventListener("click", () => viewer.viewport.zoomBy(1 / 1.5));
  $("home").addEventListener("click", () => viewer.viewport.goHome());
  window.addEventListener("keydown", press, true);
  viewer.addHandler("animation-finish", writeAddress);
  $("zoom").addEventListener("pointermove", (event) => {
    const box = $("zoom").getBoundingClientRect();
    sayUnder(new OpenSeadragon.Point(event.clientX - box.left, event.clientY - box.top));
  });
  window.addEventListener("hashchange", () => { // an address that was typed or followed
    const wanted = readAddress();
    const isOther = wanted.slide !== state.slide;
    Object.assign(state, wanted);
    showControls();
    if (isOther) openSlide(wanted.slide);
    else { if (wanted.at) goTo(wanted.at); paintOutlines(); showMap(); }
  });
}

async function start() {
  [run, slides] = await Promise.all([read("run.json"), read("slides.json")]);
  document.title = `${run.name}: distmil view`;
  $("run").textContent = run.name;
  const option = ([value, text]) => Object.assign(document.createElement("option"), { value, textContent: text });
  $("filter").append(...filtersOf(slides, run.classes).map(option));
  $("colours").append(...Object.keys(run.colours).map((name) => option([name, name])));
  $("maps").append(...["none", ...run.scores].map((name, i) => {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "map", value: name });
    input.addEventListener("input", () => change({ map: name }));
    label.append(input, ` ${name} (key ${i})`);
    return label;
  }));
  Object.assign(state, readAddress());
  if (state.map !== "none" && !run.scores.includes(state.map)) state.map = "fused";
  wire();
  showControls();
  showList();
  await openSlide(state.slide || slides[0].slide_id);
}

start().catch((error) => problem(`The page cannot be shown: ${error.message}`));
