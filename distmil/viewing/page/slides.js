// The list of slides: search, filter, sort. The list arrives in the order in which people should look.

const byName = (a, b) => a.slide_id.localeCompare(b.slide_id, "en", { numeric: true });
const ORDERS = {
  look: () => 0,
  score: (a, b) => b.probability - a.probability || byName(a, b),
  disagreement: (a, b) => (b.disagreement ?? -1) - (a.disagreement ?? -1) || byName(a, b),
  name: byName,
};

/** List the filters that fit a run: [value, words]. */
export function filtersOf(slides, classes) {
  const filters = [["all", "all slides"]];
  if (slides.some((slide) => slide.label)) filters.push(["wrong", "wrong"], ["right", "right"], ["unlabelled", "without a label"]);
  return [...filters, ...classes.map((name) => [`predicted ${name}`, `predicted ${name}`])];
}

const isKept = (slide, filter) => {
  if (filter === "all") return true;
  if (filter === "unlabelled") return !slide.label;
  if (filter === "wrong" || filter === "right") return slide.label && (slide.label === slide.predicted) === (filter === "right");
  return filter === `predicted ${slide.predicted}`;
};

/** Choose and order slides. */
export function chosen(slides, { search, filter, sort }) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (slide) => [slide.slide_id, slide.predicted, slide.label, ...Object.values(slide.extra)].join(" ").toLowerCase();
  return slides
    .filter((slide) => isKept(slide, filter) && words.every((word) => text(slide).includes(word)))
    .sort(ORDERS[sort] ?? ORDERS.look);
}

/** Describe a slide's prediction in words. */
export function verdict(slide) {
  const known = slide.label ? (slide.label === slide.predicted ? `right: ${slide.label}` : `wrong: labelled ${slide.label}`) : "no label";
  return `${slide.probability.toFixed(2)}, predicted ${slide.predicted}; ${known}`;
}
