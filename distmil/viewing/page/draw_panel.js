// The controls of drawing: modes, class, saving. Unsaved outlines of a slide wait while another slide is shown.
import { Drawing } from "./drawing.js";
import { Pencil } from "./pencil.js";

const $ = (id) => document.getElementById(id);
export const MODES = { look: "Look", edit: "Edit", corners: "Corners", freehand: "Freehand", accept: "Accept" };
const HELP = {
  look: "Outlines stay as they are.",
  edit: "Click an outline, then drag its corners or the dots between them. A double click removes a corner, Delete the outline.",
  corners: "Click the corners; a double click, Enter or the first corner closes the outline. Backspace takes the last one back.",
  freehand: "Draw around it in one stroke.",
  accept: "Click predicted regions to take them over.",
};

export class DrawPanel {
  constructor(pane, { changed }) {
    Object.assign(this, { pane, changed, drafts: new Map(), slideId: "", said: null, isOpen: false });
    this.pencil = new Pencil(pane.overlay, {
      regions: () => pane.outlines.regions ?? [], name: () => $("class").value, changed: () => this.show(),
    });
  }

  get drawing() { return this.pencil.drawing; }
  get hasUnsaved() { return [...this.drafts.values()].some((one) => one.isChanged); }

  /** Let people draw: only where what they draw can be saved. */
  start(names) {
    this.isOpen = true;
    $("draw").hidden = false;
    $("modes").append(...Object.entries(MODES).map(([mode, words]) => {
      const button = Object.assign(document.createElement("button"), { textContent: words, title: HELP[mode] });
      button.dataset.mode = mode;
      button.addEventListener("click", () => this.pencil.setMode(mode));
      return button;
    }));
    $("class").append(...names.map((name) => new Option(name)));
    $("class").addEventListener("input", () => this.rename());
    $("complete").addEventListener("input", () => { this.drawing.change({ complete: $("complete").checked }); this.show(); });
    $("accept-all").addEventListener("click", () => this.pencil.accept(this.pane.outlines.regions ?? []));
    $("delete").addEventListener("click", () => this.remove());
    $("undo").addEventListener("click", () => this.pencil.undo());
    $("save").addEventListener("click", () => this.save());
    $("merge").addEventListener("click", () => this.merge());
    window.addEventListener("beforeunload", (event) => { if (this.hasUnsaved) event.preventDefault(); });
  }

  /** Take the outlines that were read of a slide; null while they are not there. */
  take(slideId, collection) {
    this.pencil.setMode("look");
    this.slideId = slideId;
    this.said = null;
    $("merge").hidden = true;
    const draft = this.drafts.get(slideId);
    if (!collection) this.pencil.drawing = null;
    else if (draft?.isChanged) this.pencil.drawing = draft;
    else this.pencil.drawing = new Drawing(collection);
    if (this.drawing) this.drafts.set(slideId, this.drawing);
    this.show();
  }

  rename() {
    const { drawing } = this;
    if (drawing && drawing.selected !== null) drawing.replace(drawing.selected, { name: $("class").value });
    this.show();
  }

  remove() {
    const { drawing } = this;
    if (drawing && drawing.selected !== null) drawing.remove(drawing.selected);
    this.show();
  }

  /** Show the state of the drawing; it asks the server for nothing. */
  show() {
    const { drawing, pencil } = this;
    if (drawing) this.pane.setOutlines("drawn", drawing.outlines);
    const isDrawable = Boolean(drawing) && !drawing.refusal;
    $("draw").querySelectorAll("button, input, select").forEach((control) => { control.disabled = !isDrawable; });
    for (const button of $("modes").children) button.setAttribute("aria-pressed", String(button.dataset.mode === pencil.mode));
    $("help").textContent = drawing?.refusal ? `Nothing can be drawn here: ${drawing.refusal}` : HELP[pencil.mode];
    if (isDrawable) {
      const selected = drawing.outlines[drawing.selected];
      $("delete").disabled = !selected;
      $("undo").disabled = !drawing.past.length && !pencil.line.length;
      $("save").disabled = !drawing.isChanged;
      $("complete").checked = drawing.complete;
      if (selected && [...$("class").options].some((option) => option.value === selected.name)) $("class").value = selected.name;
    }
    $("saved").textContent = this.state();
    this.changed();
  }

  /** Say whether it is saved; what the server said holds until the next change. */
  state() {
    const { drawing, said } = this;
    if (said && said.of === drawing?.now) return said.words;
    if (drawing?.isChanged) return "Not saved yet.";
    return drawing?.version ? `Saved, version ${drawing.version}.` : "";
  }

  async save() {
    const { drawing, slideId } = this;
    if (!drawing?.isChanged) return;
    const state = drawing.now;
    const answer = await fetch(`slide-${slideId}/outlines.geojson`, {
      method: "PUT", body: JSON.stringify(drawing),
      headers: { "Content-Type": "application/geo+json", "If-Match": `"${drawing.version}"` },
    }).catch((error) => ({ ok: false, text: async () => `the viewer does not answer (${error.message})` }));
    let words;
    if (answer.ok) {
      const { version, manifest, doubts } = await answer.json();
      drawing.saved(state, version);
      words = [`Saved, version ${version}. The next training reads it with cohort.manifest=.../${manifest}.`, ...doubts.map((doubt) => `Note: ${doubt}.`)].join(" ");
    } else {
      words = `Not saved: ${(await answer.text()).trim()}`;
    }
    if (slideId !== this.slideId) return;
    this.said = { words, of: state };
    $("merge").hidden = answer.status !== 412;
    this.show();
  }

  /** After a refusal: take the newest version with the changes that were made here. */
  async merge() {
    const { slideId } = this;
    const answer = await fetch(`slide-${slideId}/outlines.geojson`);
    if (!answer.ok || slideId !== this.slideId) return;
    this.pencil.drawing = this.drawing.rebase(await answer.json());
    this.drafts.set(slideId, this.drawing);
    this.said = { words: "The newest version with your changes is shown; it is not saved yet.", of: this.drawing.now };
    $("merge").hidden = true;
    this.show();
  }

  /** Answer a key; returns whether it was one of drawing. */
  press(key, isControl) {
    const { pencil, drawing } = this;
    if (!this.isOpen || !drawing || drawing.refusal) return false;
    const mode = { e: "edit", o: "corners", f: "freehand", a: "accept" }[key];
    if (isControl) {
      if (key !== "z") return false;
      pencil.undo();
    } else if (mode) pencil.setMode(pencil.mode === mode ? "look" : mode);
    else if (key === "s") this.save();
    else if (key === "Escape" && pencil.mode !== "look") pencil.line.length ? pencil.setMode(pencil.mode) : pencil.setMode("look");
    else if (key === "Enter" && pencil.line.length) pencil.finish();
    else if (key === "Backspace" && pencil.line.length) pencil.undo();
    else if ((key === "Delete" || key === "Backspace") && drawing.selected !== null) this.remove();
    else return false;
    return true;
  }
}
