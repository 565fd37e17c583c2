// One slide of one run on the screen: its deep zoom, its map, its outlines. Two panes may show one slide side by side.
import { outlinesOf } from "./drawing.js";
import { Overlay, colourMap, readMap } from "./overlay.js";
import { pathOfRings } from "./pencil.js";

const DASHES = { regions: [], drawn: [8, 6] };

/** Read JSON; what the server says of a failure is the error. */
export async function read(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

export class Pane {
  /** `prefix` leads to the run's files, "" or "beside/"; the pixels of a slide are the same for both. */
  constructor(element, { prefix = "", hasNavigator = false } = {}) {
    Object.assign(this, { element, prefix, run: null, slide: null, maps: {}, outlines: {}, paths: {}, turn: 0, shownPatches: 0 });
    this.viewer = OpenSeadragon({
      element, drawer: "canvas", showNavigationControl: false, showNavigator: hasNavigator,
      navigatorPosition: "BOTTOM_RIGHT", maxZoomPixelRatio: 4, animationTime: 0.4, imageSmoothingEnabled: true,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    });
    this.overlay = new Overlay(this.viewer);
    this.wanted = null; // the place that was gone to, which holds when the pane's size changes, until the slide is moved
    const again = () => { if (this.wanted) this.goTo(this.wanted); };
    this.viewer.addHandler("after-resize", () => requestAnimationFrame(again)); // OpenSeadragon zooms after its event
    for (const event of ["canvas-press", "canvas-scroll", "canvas-pinch"]) this.viewer.addHandler(event, () => { this.wanted = null; });
  }

  folder(slideId) {
    return `${this.prefix}slide-${slideId}`;
  }

  /** Open a slide at a place; null: all of it. Returns whether it is still the one that is wanted. */
  async open(slideId, at, opened = () => {}) {
    const mine = ++this.turn;
    Object.assign(this.overlay, { map: null, lines: [], box: null });
    this.wanted = null;
    [this.slide, this.maps, this.outlines, this.paths] = [null, {}, {}, {}];
    const slide = await read(`${this.folder(slideId)}/slide.json`);
    if (mine !== this.turn) return false;
    this.slide = slide;
    this.viewer.addOnceHandler("open", () => { if (at) this.goTo(at); opened(); });
    this.viewer.open(this.source());
    return true;
  }

  close() {
    this.turn += 1;
    this.slide = null;
    Object.assign(this.overlay, { map: null, lines: [], box: null });
    this.viewer.close();
    this.overlay.draw();
  }

  source() {
    const { slide, run } = this;
    const count = slide.num_levels;
    const longest = Math.max(slide.width, slide.height);
    let last = count - 1; // the finest level that an export has
    while (run.max_px && last > 0 && Math.ceil(longest / 2 ** (count - 1 - last)) > run.max_px) last -= 1;
    return {
      width: slide.width, height: slide.height, tileSize: slide.tile_px, minLevel: 0, maxLevel: count - 1,
      getTileUrl: (level, x, y) => `slide-${slide.slide_id}/tiles/${level}/${x}_${y}.jpg`,
      tileExists: (level, x, y) => {
        const factor = 2 ** (count - 1 - level) * slide.tile_px;
        return level <= last && x >= 0 && y >= 0 && x < Math.ceil(slide.width / factor) && y < Math.ceil(slide.height / factor);
      },
    };
  }

  /** Return the centre in level-0 pixels and the zoom, null before a slide is there. */
  place() {
    const image = this.viewer.world.getItemAt(0);
    if (!image) return null;
    const { x, y } = image.viewportToImageCoordinates(this.viewer.viewport.getCenter(true));
    return [x, y, image.viewportToImageZoom(this.viewer.viewport.getZoom(true))];
  }

  goTo([x, y, zoom]) {
    const image = this.viewer.world.getItemAt(0);
    if (!image) return;
    this.wanted = [x, y, zoom];
    this.viewer.viewport.zoomTo(image.imageToViewportZoom(zoom), null, true);
    this.viewer.viewport.panTo(image.imageToViewportCoordinates(new OpenSeadragon.Point(x, y)), true);
  }

  /** Show a map. Only one that was not shown before is asked for. */
  async showMap(state) {
    const mine = this.turn;
    const name = state.map;
    if (name !== "none" && this.slide && !(name in this.maps)) {
      const values = await readMap(`${this.folder(this.slide.slide_id)}/maps/${name}.png`, this.slide.map);
      if (mine !== this.turn) return;
      this.maps[name] = values;
    }
    this.paintMap(state);
  }

  paintMap(state) {
    const values = this.maps[state.map];
    this.overlay.map = null;
    if (values) {
      const { canvas, shown } = colourMap(values, this.slide.map, { table: this.run.colours[state.colours], from: state.from });
      this.overlay.map = { canvas, ...this.slide.map, opacity: state.opacity };
      this.shownPatches = shown;
    }
    this.overlay.draw();
  }

  /** Say a map's value at a level-0 place, from 0 to 1; null where there is none. */
  valueAt(name, x, y) {
    const { map } = this.slide;
    const [column, row] = [(x - map.x) / map.step, (y - map.y) / map.step].map(Math.floor);
    if (column < 0 || row < 0 || column >= map.width || row >= map.height) return null;
    const value = this.maps[name]?.[row * map.width + column] ?? -1;
    return value < 0 ? null : value / 255;
  }

  /** Read a file of outlines; returns its content, with `error` where it cannot be read. */
  async readOutlines(name, file) {
    const mine = this.turn;
    const found = await read(`${this.folder(this.slide.slide_id)}/${file}.geojson`).catch((error) => ({ features: [], error: error.message }));
    if (mine !== this.turn) return null;
    this.setOutlines(name, outlinesOf(found));
    return found;
  }

  setOutlines(name, outlines) {
    if (this.outlines[name] === outlines) return;
    this.outlines[name] = outlines;
    this.paths[name] = pathOfRings(outlines.flatMap(({ rings }) => rings));
  }

  paintOutlines(state) {
    this.overlay.lines = Object.keys(DASHES)
      .filter((name) => state[name] && this.paths[name])
      .map((name) => ({ path: this.paths[name], dash: DASHES[name] }));
    this.overlay.draw();
  }

  /** Show all of the slide. */
  home() {
    this.wanted = null;
    this.viewer.viewport.goHome();
  }

  zoomBy(factor) {
    this.wanted = null;
    this.viewer.viewport.zoomBy(factor);
  }

  jump(patch) {
    this.overlay.box = patch;
    const half = patch.extent_px / 2;
    this.goTo([patch.x + half, patch.y + half, Math.min(1, this.element.clientWidth / (4 * patch.extent_px))]);
    this.overlay.draw();
  }
}

/** Let two panes show the same place: the one under the pointer leads, the first where it is elsewhere. */
export function bind(one, other) {
  let leader = one;
  const follow = (from, to) => from.viewer.addHandler("update-viewport", () => {
    const [here, there] = [from.place(), to.place()];
    if (leader !== from || !here || !there || from.slide?.slide_id !== to.slide?.slide_id) return;
    if (here.some((value, i) => Math.abs(value - there[i]) > 1e-6 * Math.max(1, Math.abs(value)))) to.goTo(here);
  });
  follow(one, other);
  follow(other, one);
  other.element.addEventListener("pointerenter", () => { leader = other; });
  other.element.addEventListener("pointerleave", () => { leader = one; });
}
