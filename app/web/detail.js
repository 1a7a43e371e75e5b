// The large view of one cell: picture, heat-map, probabilities, and the label that a person gives.

import { announce, byId, el, svg } from "./dom.js";
import { percent, reason, time } from "./format.js";
import { labelTag } from "./grid.js";
import { explain, KeyWanted, Refused } from "./service.js";

const CHOICES = { none: "not looked at", ALL: "ALL", HEM: "HEM", unsure: "can't tell" };
const MAPS = { overlay: "over the picture", map: "map alone" };

export class Detail {
  /** @param {(cell) => void} closed called with the cell that was shown last */
  constructor(store, thumbs, closed) {
    this.store = store;
    this.thumbs = thumbs;
    this.dialog = byId("detail");
    this.style = "overlay";
    this.band = null;
    this.urls = [];
    this.maps = new Map(); // heat-maps of this visit, by cell and style
    this.dialog.addEventListener("keydown", (event) => this.keys(event));
    this.dialog.addEventListener("close", () => {
      this.abort?.abort();
      this.release();
      closed(this.cell);
    });
  }

  /** Show `cells[index]`; the others are a step away. */
  show(cells, index) {
    this.cells = cells;
    this.index = index;
    this.cell = cells[index];
    this.abort?.abort();
    this.abort = new AbortController();
    this.release();
    this.dialog.replaceChildren(...this.inside());
    if (!this.dialog.open) this.dialog.showModal();
    this.fill();
  }

  step(by) {
    const target = this.index + by;
    if (target < 0 || target >= this.cells.length) return;
    this.show(this.cells, target);
    this.dialog.querySelector("#detail-title").focus();
    announce(`${target + 1} of ${this.cells.length}`);
  }

  keys(event) {
    const by = { PageDown: 1, PageUp: -1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    this.step(by);
  }

  inside() {
    const { cell } = this;
    const edge = (by) => (by < 0 ? this.index === 0 : this.index === this.cells.length - 1);
    return [
      el("header", {},
        el("h2", { id: "detail-title", tabindex: "-1" }, cell.name),
        el("span", { class: "figures" }, `${this.index + 1} of ${this.cells.length}`),
        el("button", { type: "button", disabled: edge(-1), title: "Page Up", onClick: () => this.step(-1) }, "Previous"),
        el("button", { type: "button", disabled: edge(1), title: "Page Down", onClick: () => this.step(1) }, "Next"),
        el("button", { type: "button", onClick: () => this.dialog.close() }, "Close")),
      el("div", { class: "pictures" },
        el("figure", {}, el("div", { class: "frame", id: "detail-picture" }), el("figcaption", {}, "The picture")),
        cell.state === "answered" && el("figure", {},
          el("div", { class: "frame", id: "detail-map" }),
          el("figcaption", {},
            el("span", { class: "key ALL" }, "spoke for ALL"), " ", el("span", { class: "key HEM" }, "spoke for HEM"), " ",
            this.mapChoice()))),
      cell.state === "answered" ? this.answer() : el("p", { class: "fault" }, cell.error ?? "Not answered yet."),
    ];
  }

  mapChoice() {
    const select = el("select", { "aria-label": "Heat-map" },
      ...Object.entries(MAPS).map(([value, words]) => el("option", { value, selected: value === this.style }, words)));
    select.addEventListener("change", () => { this.style = select.value; this.fillMap(); });
    return select;
  }

  answer() {
    const { cell } = this;
    return el("div", { class: "facts" },
      el("section", {},
        el("h3", {}, "The model says"),
        el("p", { class: "verdict" }, labelTag(cell.label), " ", el("b", { class: "figures" }, percent(cell.confidence))),
        scale(cell.probabilities.ALL, this.band),
        el("p", { class: "figures" }, `P(ALL) ${cell.probabilities.ALL.toFixed(4)}, P(HEM) ${cell.probabilities.HEM.toFixed(4)}`),
        cell.review ? el("p", { class: "flagged" }, "A person should look. ", cell.reasons.map(reason).join(" ")) : null),
      el("section", {}, this.labelChoice()),
      el("dl", {}, ...[
        ["Patient", cell.subject || "not told"], ["File", cell.path],
        ["Model", `${cell.model.name} ${cell.model.version}`], ["Answered", time(new Date(cell.answeredAt))],
      ].flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, value)])));
  }

  labelChoice() {
    const { cell } = this;
    const radios = Object.entries(CHOICES).map(([value, words]) => {
      const input = el("input", { type: "radio", name: "person", value, checked: (cell.person ?? "none") === value });
      input.addEventListener("change", () => this.store.update(cell, { person: value === "none" ? null : value }));
      return el("label", {}, input, el("span", {}, words));
    });
    return el("fieldset", { class: "filters" }, el("legend", {}, "Your label"), ...radios);
  }

  fill() {
    this.fillPicture();
    if (this.cell.state === "answered") this.fillMap();
  }

  async fillPicture() {
    const { cell } = this;
    const frame = byId("detail-picture");
    if (!cell.file) {
      const small = this.thumbs.url(cell);
      frame.replaceChildren(...[
        small && el("img", { src: small, alt: `${cell.name}, small` }),
        el("p", { class: "hint" }, "Only the small picture is kept. Add the file again to see it whole."),
      ].filter(Boolean));
      return;
    }
    const image = el("img", { src: this.url(cell.file), alt: cell.name });
    image.addEventListener("error", () => this.fillFromService(frame));
    frame.replaceChildren(image);
  }

  /** A TIFF, say: the browser can't show it, but the service's picture beside the map can be cut out. */
  async fillFromService(frame) {
    try {
      const both = await createImageBitmap(await explain(this.cell.file, "side-by-side", this.abort.signal));
      const canvas = el("canvas", { width: both.width / 2, height: both.height, role: "img", "aria-label": this.cell.name });
      canvas.getContext("2d").drawImage(both, 0, 0);
      frame.replaceChildren(canvas);
    } catch {
      frame.replaceChildren(el("p", { class: "hint" }, "This browser can't show the picture; the model has read it."));
    }
  }

  async fillMap() {
    const { cell, style } = this;
    const { signal } = this.abort;
    const frame = byId("detail-map");
    if (!cell.file) {
      frame.replaceChildren(el("p", { class: "hint" }, "Add the file again to see the heat-map."));
      return;
    }
    frame.replaceChildren(el("p", { class: "hint" }, "Asking the service"));
    try {
      const name = `${cell.id} ${style}`;
      if (!this.maps.has(name)) this.maps.set(name, await explain(cell.file, style, signal));
      if (signal.aborted || style !== this.style) return;
      const words = `Heat-map of ${cell.name}: orange regions spoke for ALL, blue ones for HEM`;
      frame.replaceChildren(el("img", { src: this.url(this.maps.get(name)), alt: words }));
    } catch (error) {
      if (signal.aborted) return;
      const again = el("button", { type: "button", onClick: () => this.fillMap() }, "Try again");
      const lasting = error instanceof Refused;
      frame.replaceChildren(el("p", { class: "hint" }, words(error)), ...(lasting ? [] : [again]));
    }
  }

  url(blob) {
    const url = URL.createObjectURL(blob);
    this.urls.push(url);
    return url;
  }

  release() {
    for (const url of this.urls) URL.revokeObjectURL(url);
    this.urls = [];
  }
}

const words = (error) => (error instanceof KeyWanted ? "The service asks for a key." : error.message);

/** P(ALL) on a line from 0 to 1, with the range in which a person should look. */
function scale(probability, band) {
  const width = 100;
  const parts = [svg("line", { x1: 0, x2: width, y1: 6, y2: 6, class: "axis" })];
  if (band) parts.push(svg("rect", { x: width * band.low, width: width * (band.high - band.low), y: 2, height: 8, class: "band" }));
  parts.push(svg("line", { x1: width * probability, x2: width * probability, y1: 0, y2: 12, class: "point" }));
  const words = band ? `review range ${band.low.toFixed(2)} to ${band.high.toFixed(2)}` : "";
  return el("div", { class: "scale", "aria-hidden": "true" },
    svg("svg", { viewBox: `0 0 ${width} 12`, preserveAspectRatio: "none" }, ...parts),
    el("div", {}, el("span", {}, "HEM"), el("small", {}, words), el("span", {}, "ALL")));
}
