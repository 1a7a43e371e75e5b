// The grid of cells: filters, order, search, and moving by arrow keys.

import { byId, el } from "./dom.js";
import { count, percent, PERSON_WORDS } from "./format.js";
import { finalLabel, needsReview } from "./subjects.js";

const FILTERS = {
  every: ["Every cell", () => true],
  review: ["To review", needsReview],
  ALL: ["ALL", (cell) => cell.state === "answered" && finalLabel(cell) === "ALL"],
  HEM: ["HEM", (cell) => cell.state === "answered" && finalLabel(cell) === "HEM"],
  labelled: ["Looked at", (cell) => Boolean(cell.person)],
  failed: ["Failed", (cell) => cell.state === "failed"],
};
const natural = new Intl.Collator("en", { numeric: true });
const last = (cell) => (cell.state === "answered" ? 0 : 1);
const byName = (a, b) => natural.compare(a.path, b.path);
const ORDERS = {
  uncertain: (a, b) => needsReview(b) - needsReview(a) || a.confidence - b.confidence,
  certain: (a, b) => b.confidence - a.confidence,
  all: (a, b) => b.probabilities.ALL - a.probabilities.ALL,
  name: byName,
  subject: (a, b) => natural.compare(a.subject, b.subject) || byName(a, b),
  added: (a, b) => a.id - b.id,
};

const PAGE = 300; // tiles that are added at a time, as scrolling nears the end: thousands at once would stutter

export class Grid {
  /**
   * @param {(cell) => void} open called when a cell is to be shown large
   */
  constructor(store, thumbs, open) {
    this.store = store;
    this.thumbs = thumbs;
    this.open = open;
    this.list = byId("grid");
    this.filter = "every";
    this.subject = null; // null: of every patient
    this.shown = [];
    this.tiles = new Map();
    this.current = 0;
    this.limit = PAGE;
    this.makeFilters();
    byId("sort").addEventListener("change", () => this.fromStart());
    byId("search").addEventListener("input", () => this.fromStart());
    byId("more").addEventListener("click", () => this.extend());
    this.nearEnd = new IntersectionObserver(([entry]) => { if (entry.isIntersecting) this.extend(); }, { rootMargin: "1500px" });
    this.nearEnd.observe(byId("more"));
    this.list.addEventListener("keydown", (event) => this.move(event));
    this.list.addEventListener("focusin", (event) => this.remember(event));
  }

  /** Show the cells of one patient only; again, or null: of all. */
  choosePatient(subject) {
    this.subject = this.subject === subject ? null : subject;
    this.fromStart();
  }

  /** Show other cells, or in another order. */
  fromStart() {
    this.limit = PAGE;
    this.render();
  }

  /** Show more of them, at least up to one. */
  extend(index = this.limit) {
    if (index >= this.shown.length || index < this.limit) return;
    this.limit = index + PAGE;
    this.render();
    // It may still be near: observed anew, it says so.
    this.nearEnd.unobserve(byId("more"));
    this.nearEnd.observe(byId("more"));
  }

  render() {
    const cells = this.store.all();
    this.countFilters(cells);
    const words = byId("search").value.trim().toLowerCase();
    const wanted = FILTERS[this.filter][1];
    const order = ORDERS[byId("sort").value];
    this.shown = cells
      .filter((cell) => wanted(cell) && (this.subject === null || cell.subject === this.subject))
      .filter((cell) => !words || `${cell.path}\n${cell.subject}`.toLowerCase().includes(words))
      .sort((a, b) => last(a) - last(b) || (last(a) ? a.id - b.id : order(a, b)) || a.id - b.id);
    for (const id of this.tiles.keys()) if (!this.store.cells.has(id)) this.tiles.delete(id);
    this.place(this.shown.slice(0, this.limit).map((cell) => this.tile(cell)));
    const hidden = Math.max(0, this.shown.length - this.limit);
    byId("more").hidden = hidden === 0;
    byId("more").textContent = `Show more (${count(hidden)} left)`;
    byId("empty").hidden = cells.length > 0;
    byId("none-match").hidden = !cells.length || this.shown.length > 0;
  }

  /** Put tiles in order without touching those that stand right, so that focus and scrolling stay. */
  place(tiles) {
    const focused = this.list.contains(document.activeElement) ? document.activeElement : null;
    if (tiles.length !== this.list.children.length || tiles.some((tile, i) => tile !== this.list.children[i])) {
      this.list.replaceChildren(...tiles);
    }
    if (focused?.isConnected && document.activeElement !== focused) focused.focus({ preventScroll: true });
    this.setCurrent(Math.max(0, tiles.findIndex((tile) => tile.firstChild === focused)));
  }

  tile(cell) {
    let item = this.tiles.get(cell.id);
    if (!item) {
      item = el("li", {}, el("button", { type: "button", tabindex: -1, onClick: () => this.open(cell, this.shown) }));
      this.tiles.set(cell.id, item);
    }
    const drawn = [cell.state, cell.label, cell.person, Boolean(cell.thumb), cell.thumbFailed].join();
    if (item.drawn !== drawn) {
      item.firstChild.replaceChildren(...this.inside(cell));
      item.className = `tile ${cell.state} ${finalLabel(cell) ?? ""}`;
      item.drawn = drawn;
    }
    return item;
  }

  inside(cell) {
    const url = this.thumbs.url(cell);
    const extension = cell.name.split(".").at(-1).toUpperCase();
    const nothing = el("span", { class: "nothing" }, cell.thumbFailed ? `${extension}: no preview` : "");
    const picture = url ? el("img", { src: url, alt: "", width: 168, height: 168, draggable: "false" }) : nothing;
    return [picture, mark(cell), answerLine(cell), el("span", { class: "name", title: cell.path }, cell.name)];
  }

  makeFilters() {
    for (const [name, [words]] of Object.entries(FILTERS)) {
      const input = el("input", { type: "radio", name: "filter", value: name, checked: name === "every" });
      input.addEventListener("change", () => { this.filter = name; this.fromStart(); });
      byId("filters").append(el("label", {}, input, el("span", {}, `${words} `, el("b", { "data-count": name }, "0"))));
    }
  }

  countFilters(cells) {
    for (const [name, [, wanted]] of Object.entries(FILTERS)) {
      byId("filters").querySelector(`[data-count="${name}"]`).textContent = count(cells.filter(wanted).length);
    }
  }

  setCurrent(index) {
    this.list.children[this.current]?.firstChild.setAttribute("tabindex", "-1");
    this.current = Math.min(index, this.list.children.length - 1);
    for (const other of this.list.querySelectorAll('[tabindex="0"]')) other.setAttribute("tabindex", "-1");
    this.list.children[this.current]?.firstChild.setAttribute("tabindex", "0");
  }

  remember(event) {
    const index = [...this.list.children].indexOf(event.target.closest("li"));
    if (index >= 0) this.setCurrent(index);
  }

  move(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns(), ArrowDown: this.columns() }[event.key];
    const end = { Home: 0, End: this.shown.length - 1 }[event.key];
    if (step === undefined && end === undefined) return;
    event.preventDefault();
    const target = end ?? this.current + step;
    if (target < 0 || target >= this.shown.length) return;
    this.extend(target);
    this.list.children[target].firstChild.focus();
  }

  columns() {
    return getComputedStyle(this.list).gridTemplateColumns.split(" ").length;
  }

  focus(cell) {
    this.extend(this.shown.indexOf(cell));
    this.tiles.get(cell.id)?.firstChild.focus();
  }
}

function answerLine(cell) {
  if (cell.state === "failed") return el("span", { class: "answer fault" }, "Failed");
  if (cell.state !== "answered") {
    return el("span", { class: "answer waiting" }, cell.state === "sending" ? "being answered" : "waiting");
  }
  return el("span", { class: "answer" }, labelTag(cell.label), " ", el("span", { class: "figures" }, percent(cell.confidence)));
}

/** What a person said, or that one should look; over the corner of the picture. */
function mark(cell) {
  if (cell.person) return el("span", { class: "mark person" }, PERSON_WORDS[cell.person]);
  return needsReview(cell) ? el("span", { class: "mark flag" }, "Review") : "";
}

/** The label with its mark: a filled ring for ALL, an open one for HEM. */
export const labelTag = (label) => el("span", { class: `label ${label}` }, label);
