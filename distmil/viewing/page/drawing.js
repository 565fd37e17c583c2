// The outlines of a slide as people change them: { name, rings }, never changed in place, so that undo is simple.

const MOST_UNDONE = 200;
const text = (outline) => JSON.stringify([outline.name, outline.rings]);
const open = (ring) => (String(ring[0]) === String(ring.at(-1)) ? ring.slice(0, -1) : ring);

/** List the outlines of GeoJSON: each polygon by itself. */
export function outlinesOf(collection) {
  return collection.features.flatMap(({ geometry, properties }) => {
    const parts = geometry.type === "Polygon" ? [geometry.coordinates] : geometry.coordinates;
    const name = properties.name ?? properties.classification?.name ?? "";
    return parts.map((rings) => ({ name, rings: rings.map(open) }));
  });
}

export class Drawing {
  constructor(collection) {
    const { version = 0, complete = false, refusal = "" } = collection.distmil ?? {};
    const unread = collection.error ?? "";
    Object.assign(this, { version, refusal: refusal || unread, unread, past: [], selected: null });
    this.now = { outlines: outlinesOf(collection), complete };
    this.base = this.now; // what is saved
  }

  get outlines() { return this.now.outlines; }
  get complete() { return this.now.complete; }
  get isChanged() { return this.now !== this.base; }

  change(values) {
    this.past = [...this.past, this.now].slice(-MOST_UNDONE);
    this.now = { ...this.now, ...values };
  }

  undo() {
    if (this.past.length) this.now = this.past.pop();
    this.selected = null;
  }

  add(added) {
    this.change({ outlines: [...this.outlines, ...added] });
    this.selected = added.length === 1 ? this.outlines.length - 1 : null;
  }

  replace(i, values) {
    this.change({ outlines: this.outlines.map((one, k) => (k === i ? { ...one, ...values } : one)) });
  }

  remove(i) {
    this.change({ outlines: this.outlines.filter((_, k) => k !== i) });
    this.selected = null;
  }

  has(outline) {
    const wanted = text(outline);
    return this.outlines.some((one) => text(one) === wanted);
  }

  /** Take the newest version, and lay what was changed since the one before over it. */
  rebase(collection) {
    const [before, mine] = [new Set(this.base.outlines.map(text)), new Set(this.outlines.map(text))];
    const added = this.outlines.filter((one) => !before.has(text(one)));
    const newest = new Drawing(collection);
    const there = new Set(newest.outlines.map(text));
    const outlines = newest.outlines.filter((one) => mine.has(text(one)) || !before.has(text(one)));
    const complete = this.complete === this.base.complete ? newest.complete : this.complete;
    newest.change({ outlines: [...outlines, ...added.filter((one) => !there.has(text(one)))], complete });
    return newest;
  }

  /** Note that a state was saved. */
  saved(state, version) {
    this.base = state;
    this.version = version;
  }

  toJSON() {
    const features = this.outlines.map(({ name, rings }) => ({
      type: "Feature", properties: { name },
      geometry: { type: "Polygon", coordinates: rings.map((ring) => [...ring, ring[0]]) },
    }));
    return { type: "FeatureCollection", distmil: { complete: this.complete }, features };
  }
}
