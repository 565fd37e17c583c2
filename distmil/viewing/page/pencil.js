// The pointer on the slide: draws outlines by corners or freehand, moves corners, takes over predicted regions.
import { areaOf, boxOf, isInside, middleOf, nearestCorner, nearestMiddle, simplified } from "./geometry.js";

const REACH_PX = { mouse: 9, pen: 12, touch: 20 };
const MOST_CORNERS = 1500;
const FREEHAND_PX = 1.2;
const LEAST_AREA_PX2 = 12; // of the screen
const LEAST_EDGE_PX = 26;

export class Pencil {
  /** `on`: { drawn(outline), changed() }; `regions()` lists the predicted regions as outlines. */
  constructor(overlay, { regions, name, changed }) {
    Object.assign(this, { overlay, regions, name, changed, drawing: null, mode: "look", line: [], grabbed: null, pointer: null });
    this.boxes = new WeakMap();
    overlay.painters.push((context, place) => this.paint(context, place));
    const { viewer } = overlay;
    const handle = (event, act) => viewer.addHandler(event, (values) => {
      if (this.mode === "look" || !this.drawing || this.drawing.refusal) return;
      if (act(values)) values.preventDefaultAction = true;
    });
    handle("canvas-press", (values) => this.press(values));
    handle("canvas-drag", (values) => this.drag(values));
    handle("canvas-drag-end", () => this.release());
    handle("canvas-release", () => this.release());
    handle("canvas-click", (values) => this.click(values));
    handle("canvas-double-click", (values) => this.doubleClick(values));
    viewer.element.addEventListener("pointermove", (event) => this.hover(event));
  }

  setMode(mode) {
    this.mode = mode;
    this.line = [];
    this.grabbed = null;
    if (this.drawing && mode !== "edit") this.drawing.selected = null;
    this.overlay.viewer.element.dataset.mode = mode;
    this.changed();
  }

  /** Convert a place on the screen to level-0 pixels, and say how far the pointer reaches there. */
  at(position, kind = "mouse") {
    const { x, y, scale } = this.overlay.place();
    const round = (value) => Math.round(value * 100) / 100;
    return { point: [round((position.x - x) / scale), round((position.y - y) / scale)],
      reach: (REACH_PX[kind] ?? REACH_PX.mouse) / scale, scale };
  }

  press({ position, pointerType }) {
    const { point, reach } = this.at(position, pointerType);
    if (this.mode === "freehand") {
      this.line = [point];
      return true;
    }
    const { selected } = this.drawing;
    if (this.mode !== "edit" || selected === null) return false;
    const { rings } = this.drawing.outlines[selected];
    const corner = nearestCorner(rings, point, reach);
    const middle = corner ? null : nearestMiddle(rings, point, reach);
    this.grabbed = corner ? { ...corner, rings } : middle && { ...middle, i: middle.i + 1, rings: withCorner(rings, middle, point) };
    return Boolean(this.grabbed);
  }

  drag({ position, pointerType }) {
    const { point } = this.at(position, pointerType);
    if (this.mode === "freehand" && this.line.length) {
      this.line.push(point);
    } else if (this.grabbed) {
      this.grabbed = { ...this.grabbed, rings: moved(this.grabbed.rings, this.grabbed, point), isMoved: true };
    } else {
      return false;
    }
    this.overlay.draw();
    return true;
  }

  release() {
    if (this.mode === "freehand" && this.line.length) {
      const { scale } = this.overlay.place();
      this.finish(simplified(this.line, FREEHAND_PX / scale));
      return true;
    }
    if (!this.grabbed) return false;
    const { rings, isMoved } = this.grabbed;
    this.grabbed = null;
    if (isMoved) this.drawing.replace(this.drawing.selected, { rings });
    this.changed();
    return true;
  }

  click({ position, quick, pointerType }) {
    if (!quick) return true;
    const { point, reach } = this.at(position, pointerType);
    if (this.mode === "corners") {
      const isClosed = this.line.length > 2 && nearestCorner([this.line.slice(0, 1)], point, reach);
      if (isClosed) this.finish(this.line);
      else this.line.push(point);
    } else if (this.mode === "edit") {
      const { outlines, selected } = this.drawing;
      const isCorner = selected !== null && nearestCorner(outlines[selected].rings, point, reach);
      if (!isCorner) this.drawing.selected = this.under(outlines, point);
    } else if (this.mode === "accept") {
      const regions = this.regions();
      const i = this.under(regions, point);
      if (i !== null) this.accept([regions[i]]);
    }
    this.changed();
    return true;
  }

  doubleClick({ position, pointerType }) {
    const { point, reach } = this.at(position, pointerType);
    if (this.mode === "corners") this.finish(this.line.filter((one, i) => !i || Math.hypot(one[0] - this.line[i - 1][0], one[1] - this.line[i - 1][1]) > reach));
    if (this.mode === "edit") this.removeCorner(point, reach);
    return true;
  }

  removeCorner(point, reach) {
    const { selected, outlines } = this.drawing;
    const corner = selected === null ? null : nearestCorner(outlines[selected].rings, point, reach);
    const { rings } = corner ? outlines[selected] : {};
    if (!corner || rings[corner.ring].length < 4) return;
    this.drawing.replace(selected, { rings: rings.map((ring, k) => (k === corner.ring ? ring.filter((_, i) => i !== corner.i) : ring)) });
    this.changed();
  }

  hover({ clientX, clientY }) {
    if (this.mode !== "corners" || !this.line.length) return;
    const box = this.overlay.viewer.element.getBoundingClientRect();
    this.pointer = this.at({ x: clientX - box.left, y: clientY - box.top }).point;
    this.overlay.draw();
  }

  /** Close the line that is drawn; nothing is added where it encloses nothing that can be seen. */
  finish(line = this.line) {
    const { scale } = this.overlay.place();
    if (line.length > 2 && areaOf(line) * scale * scale >= LEAST_AREA_PX2) this.drawing.add([{ name: this.name(), rings: [line] }]);
    this.line = [];
    this.changed();
  }

  /** Take over predicted regions that are not there yet. */
  accept(regions) {
    const added = regions.filter((region) => !this.drawing.has(region));
    if (added.length) this.drawing.add(added);
    this.changed();
  }

  /** Undo the last corner of a line, else the last change. */
  undo() {
    if (this.line.length) this.line.pop();
    else this.drawing?.undo();
    this.changed();
  }

  /** Find the smallest outline around a point. */
  under(outlines, point) {
    let [found, least] = [null, Infinity];
    outlines.forEach(({ rings }, i) => {
      const [left, top, right, bottom] = this.box(rings[0]);
      if (point[0] < left || point[0] > right || point[1] < top || point[1] > bottom) return;
      const area = areaOf(rings[0]);
      if (area < least && isInside(rings, point)) [found, least] = [i, area];
    });
    return found;
  }

  box(ring) {
    if (!this.boxes.has(ring)) this.boxes.set(ring, boxOf(ring));
    return this.boxes.get(ring);
  }

  paint(context, { px, stroke, seen }) {
    if (!this.drawing) return;
    const { selected, outlines } = this.drawing;
    if (selected !== null) {
      const rings = this.grabbed?.rings ?? outlines[selected].rings;
      stroke(pathOfRings(rings), [], 1.6);
      this.paintCorners(context, rings, { px, seen });
    }
    if (this.line.length) {
      const points = this.pointer && this.mode === "corners" ? [...this.line, this.pointer] : this.line;
      stroke(pathOfRings([points], { isOpen: true }), []);
      square(context, this.line[0], 5 * px, "#fff");
    }
  }

  paintCorners(context, rings, { px, seen: [left, top, right, bottom] }) {
    const isSeen = ([x, y]) => x >= left && x <= right && y >= top && y <= bottom;
    const corners = rings.flatMap((ring) => ring.filter(isSeen));
    if (corners.length > MOST_CORNERS) return;
    for (const ring of rings) {
      ring.forEach((corner, i) => {
        const next = ring[(i + 1) % ring.length];
        const middle = middleOf(corner, next);
        const isLong = Math.hypot(next[0] - corner[0], next[1] - corner[1]) > LEAST_EDGE_PX * px;
        if (isLong && isSeen(middle)) square(context, middle, 2.5 * px, "#111");
      });
    }
    for (const corner of corners) square(context, corner, 4.5 * px, "#fff");
  }
}

/** Make the path of rings. */
export function pathOfRings(rings, { isOpen = false } = {}) {
  const path = new Path2D();
  for (const ring of rings) {
    ring.forEach(([x, y], i) => (i ? path.lineTo(x, y) : path.moveTo(x, y)));
    if (!isOpen) path.closePath();
  }
  return path;
}

function square(context, [x, y], half, colour) {
  context.fillStyle = "#111";
  context.fillRect(x - half, y - half, 2 * half, 2 * half);
  context.fillStyle = colour;
  context.fillRect(x - 0.65 * half, y - 0.65 * half, 1.3 * half, 1.3 * half);
}

const withCorner = (rings, { ring, i }, point) => rings.map((one, k) => (k === ring ? one.toSpliced(i + 1, 0, point) : one));
const moved = (rings, { ring, i }, point) => rings.map((one, k) => (k === ring ? one.with(i, point) : one));
