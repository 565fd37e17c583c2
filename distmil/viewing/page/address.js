// The page's address holds the view: a link to it, kept or sent on, leads to the same view.

export const FLAGS = ["regions", "drawn", "beside"];

/** Read a view; values that are missing or out of range are those of `otherwise`. */
export function readView(hash, otherwise, colours) {
  const values = new URLSearchParams(hash.slice(1));
  const number = (name, low, high, other) => {
    const value = Number.parseFloat(values.get(name));
    return Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : other;
  };
  const at = ["x", "y", "zoom"].map((name) => number(name, -1e9, 1e9, null));
  return {
    slide: values.get("slide") ?? "",
    map: values.get("map") ?? otherwise.map,
    opacity: number("opacity", 0, 1, otherwise.opacity),
    from: number("from", 0, 1, otherwise.from),
    colours: colours.includes(values.get("colours")) ? values.get("colours") : otherwise.colours,
    ...Object.fromEntries(FLAGS.map((name) => [name, values.has(name) ? values.get(name) === "1" : otherwise[name]])),
    at: at.includes(null) || at[2] <= 0 ? null : at,
  };
}

/** Write a view; `at` is the centre and zoom, null before the slide is there. */
export function writeView(state, at) {
  const values = new URLSearchParams({ slide: state.slide, map: state.map, opacity: state.opacity, from: state.from, colours: state.colours });
  for (const name of FLAGS) values.set(name, Number(state[name]));
  if (at) {
    const [x, y, zoom] = at;
    Object.entries({ x: x.toFixed(1), y: y.toFixed(1), zoom: zoom.toPrecision(4) }).forEach(([name, value]) => values.set(name, value));
  }
  return `#${values}`;
}
