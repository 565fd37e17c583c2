// What the page says of the slides and of the slide that is shown.
import { verdict } from "./slides.js";

const $ = (id) => document.getElementById(id);
const make = (tag, values = {}) => Object.assign(document.createElement(tag), values);

/** Fill a select with [value, words]. */
export const fill = (id, options) => $(id).append(...options.map(([value, textContent]) => make("option", { value, textContent })));

function row(button) {
  const item = make("li");
  item.append(button);
  return item;
}

/** Show the list; `current` is the slide that is shown. */
export function showList(shown, { total, noun, current, open }) {
  $("count").textContent = `${shown.length} of ${total} ${noun}s`;
  $("slides").replaceChildren(...shown.map((one) => {
    const button = make("button", { textContent: one.slide_id });
    const words = make("small", { textContent: [verdict(one), ...Object.values(one.extra)].join(", ") });
    words.classList.toggle("wrong", Boolean(one.label) && one.label !== one.predicted);
    button.append(words);
    button.dataset.slide = one.slide_id;
    button.setAttribute("aria-current", String(one.slide_id === current));
    button.addEventListener("click", () => open(one.slide_id));
    return row(button);
  }));
}

/** Show the slide's words and its top patches. */
export function showSlide(slide, folder, jump) {
  $("name").textContent = slide.slide_id;
  $("words").textContent = slide.words;
  $("numbers").textContent = `${slide.num_abnormal} of ${slide.num_patches} patches have a probability from ${slide.threshold.toFixed(2)}.`;
  $("top").replaceChildren(...slide.top.map((patch, rank) => {
    const words = `patch ${rank + 1}: ${slide.map.scores.map((name) => `${name} ${patch[name].toFixed(2)}`).join(", ")}`;
    const button = make("button", { title: words });
    button.append(make("img", { src: `${folder}/top/${rank}.jpg`, alt: words, loading: "lazy" }), patch.fused.toFixed(2));
    button.addEventListener("click", () => jump(rank));
    return row(button);
  }));
}

export const topRank = () => [...document.querySelectorAll("#top button")].findIndex((one) => one.getAttribute("aria-current") === "true");

export function markTop(rank) {
  document.querySelectorAll("#top button").forEach((button, i) => button.setAttribute("aria-current", String(i === rank)));
}

/** Show the settings of a view. */
export function showControls(state, colours) {
  for (const name of ["opacity", "from"]) {
    $(name).value = state[name];
    $(`${name}-says`).textContent = state[name].toFixed(2);
  }
  $("colours").value = state.colours;
  for (const name of ["regions", "drawn", "beside"]) $(name).checked = state[name];
  document.querySelectorAll("#maps input").forEach((input) => { input.checked = input.value === state.map; });
  const bar = $("bar").getContext("2d");
  const picture = new ImageData(256, 1);
  colours[state.colours].forEach((colour, i) => picture.data.set([...colour, 255], 4 * i));
  bar.putImageData(picture, 0, 0);
}

/** Offer the maps. */
export function offerMaps(names, choose) {
  $("maps").append(...names.map((name, i) => {
    const label = make("label");
    const input = make("input", { type: "radio", name: "map", value: name });
    input.addEventListener("input", () => choose(name));
    label.append(input, ` ${name} (key ${i})`);
    return label;
  }));
}

export function showProblem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}
