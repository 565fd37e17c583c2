// What lies over the slide: one map, coloured here, and outlines. x, y are level-0 pixels of the slide.

/** Read a map's values: 0 to 255 a pixel, -1 where no patch lies. */
export async function readMap(address, { width, height }) {
  const picture = new Image();
  picture.src = address;
  await picture.decode();
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  return Int16Array.from({ length: width * height }, (_, i) => (data[4 * i + 3] ? data[4 * i] : -1));
}

/** Colour a map; values below `from` (0 to 1) stay clear. Returns the picture and how many patches it shows. */
export function colourMap(values, { width, height }, { table, from }) {
  const canvas = new OffscreenCanvas(width, height);
  const picture = new ImageData(width, height);
  let shown = 0;
  values.forEach((value, i) => {
    if (value < 0 || value < from * 255 - 0.5) return;
    shown += 1;
    picture.data.set([...table[value], 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return { canvas, shown };
}

/** A canvas over the slide that is drawn again whenever the view moves. */
export class Overlay {
  constructor(viewer) {
    this.viewer = viewer;
    this.map = null; // { canvas, x, y, step, opacity }
    this.lines = []; // { path, dash }
    this.box = null; // a patch that is pointed out: { x, y, extent_px }
    this.painters = []; // functions that draw over all of it: (context, { px, stroke, seen })
    this.canvas = document.createElement("canvas");
    this.canvas.className = "overlay";
    viewer.canvas.append(this.canvas);
    for (const event of ["update-viewport", "resize", "open"]) viewer.addHandler(event, () => this.draw());
  }

  /** Return where (0, 0) of the slide is on the screen, and the screen's pixels per level-0 pixel. */
  place() {
    const image = this.viewer.world.getItemAt(0);
    if (!image) return null;
    const [left, right] = [0, image.source.dimensions.x].map((x) =>
      image.imageToViewerElementCoordinates(new OpenSeadragon.Point(x, 0)));
    return { x: left.x, y: left.y, scale: (right.x - left.x) / image.source.dimensions.x };
  }

  draw() {
    const { canvas } = this;
    const sharp = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((edge) => Math.round(edge * sharp));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    const place = this.place();
    if (!place) return;
    const scale = place.scale * sharp;
    context.setTransform(scale, 0, 0, scale, place.x * sharp, place.y * sharp);
    this.drawMap(context);
    for (const { path, dash } of this.lines) strokeTwice(context, path, dash, sharp / scale);
    if (this.box) {
      const path = new Path2D();
      path.rect(this.box.x, this.box.y, this.box.extent_px, this.box.extent_px);
      strokeTwice(context, path, [], (2 * sharp) / scale);
    }
    const px = sharp / scale;
    const seen = [0, 0, width, height].map((edge, i) => (edge - [place.x, place.y][i % 2] * sharp) / scale);
    const stroke = (path, dash, weight = 1) => strokeTwice(context, path, dash, weight * px);
    for (const paint of this.painters) paint(context, { px, stroke, seen });
  }

  drawMap(context) {
    if (!this.map) return;
    const { canvas, x, y, step, opacity } = this.map;
    context.imageSmoothingEnabled = false;
    context.globalAlpha = opacity;
    context.drawImage(canvas, x, y, canvas.width * step, canvas.height * step);
    context.globalAlpha = 1;
  }
}

/** Draw a dark line in a light one, which is seen on every colour. */
function strokeTwice(context, path, dash, px) {
  context.setLineDash([]);
  context.lineWidth = 4 * px;
  context.strokeStyle = "#fffc";
  context.stroke(path);
  context.setLineDash(dash.map((length) => length * px));
  context.lineWidth = 2 * px;
  context.strokeStyle = "#111";
  context.stroke(path);
  context.setLineDash([]);
}
