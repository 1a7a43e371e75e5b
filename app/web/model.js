// The panel about the active model: what it is, its measured figures, and its limits.

import { byId, el } from "./dom.js";
import { count, percent } from "./format.js";
import { activeModel, KeyWanted, modelCard } from "./service.js";

const FIGURES = [
  ["weighted_f1", "weighted F1"], ["auroc", "AUROC"], ["accuracy", "accuracy"], ["sensitivity", "sensitivity (ALL)"],
  ["specificity", "specificity (HEM)"], ["balanced_accuracy", "balanced accuracy"], ["ece", "calibration error (ECE)"],
  ["brier", "Brier score"],
];
const ASK_AGAIN_MS = 5000;

export class Model {
  /**
   * @param {(model: object) => void} known called when the model's facts are there
   * @param {() => void} askKey called when a person wants them and the service wants a key
   */
  constructor(known, askKey) {
    this.known = known;
    this.askKey = askKey;
    this.locked = false;
    this.facts = null;
    this.card = "";
    byId("model-button").addEventListener("click", () => this.show());
  }

  /** Ask for the model; while the service is not there, again and again. */
  async load() {
    try {
      this.facts = await activeModel();
      this.locked = false;
      this.card = await modelCard().catch(() => "");
      byId("model-name").textContent = `Model ${this.facts.name} ${this.facts.version}`;
      this.known(this.facts);
    } catch (error) {
      this.locked = error instanceof KeyWanted;
      byId("model-name").textContent = this.locked ? "Model: a key is needed" : "Model: service not ready";
      if (!this.facts && !this.locked) setTimeout(() => this.load(), ASK_AGAIN_MS);
    }
  }

  show() {
    if (this.locked) {
      this.askKey();
      return;
    }
    const dialog = byId("model");
    const close = el("button", { type: "button", onClick: () => dialog.close() }, "Close");
    dialog.replaceChildren(el("header", {}, el("h2", { id: "model-title" }, "The model"), close), ...this.inside());
    dialog.showModal();
    this.load();
  }

  inside() {
    if (!this.facts) return [el("p", {}, "The service has not said yet which model is active.")];
    const { facts } = this;
    return [
      el("dl", {}, ...terms({
        Name: facts.name, Version: facts.version, "Runs on": facts.provider?.active,
        Files: facts.verified ? "as published (hashes checked)" : facts.problem,
        Precision: facts.manifest?.precision, Licence: facts.manifest?.licence?.weights,
      })),
      ...this.figures(),
      ...this.limits(),
      el("h3", {}, "Hashes (SHA-256)"),
      el("dl", { class: "hashes" }, ...terms(facts.hashes)),
      this.card && el("details", {}, el("summary", {}, "The whole model card"),
        el("pre", { tabindex: "0", role: "region", "aria-label": "Model card" }, this.card)),
    ].filter(Boolean);
  }

  figures() {
    const { test, split } = this.facts.metrics;
    if (!test) return [el("h3", {}, "Measured"), el("p", {}, "This model's report has no figures of a test part.")];
    const rows = FIGURES.filter(([name]) => typeof test[name] === "number").map(([name, words]) => {
      const interval = test.interval_95?.[name];
      return el("tr", {}, el("th", { scope: "row" }, words), el("td", { class: "number" }, test[name].toFixed(3)),
        el("td", { class: "number" }, interval ? `${interval[0].toFixed(3)} – ${interval[1].toFixed(3)}` : ""));
    });
    const band = this.facts.manifest?.review;
    return [
      el("h3", {}, "Measured on cells of people that it was not trained on"),
      el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, `${count(test.cells)} cells, one by one`),
        el("th", { scope: "col", class: "number" }, "value"),
        el("th", { scope: "col", class: "number" }, "95 % interval over people"))), el("tbody", {}, ...rows)),
      el("p", { class: "hint" }, `Split: ${split?.name ?? this.facts.manifest?.split ?? "not named"}.`),
      band && el("p", {}, `A person should look where P(ALL) is from ${percent(band.low)} to ${percent(band.high)}.`),
    ].filter(Boolean);
  }

  /** The limits that stand in the model's card, as they stand there. */
  limits() {
    const section = /^## Limits\n([\s\S]*?)(?=^## |$(?![\s\S]))/m.exec(this.card)?.[1] ?? "";
    const items = section.split(/^- /m).map((item) => item.replace(/\s+/g, " ").trim()).filter(Boolean);
    if (!items.length) return [];
    return [el("h3", {}, "Limits"), el("ul", {}, ...items.map((item) => el("li", {}, item)))];
  }
}

const terms = (facts) =>
  Object.entries(facts ?? {}).filter(([, value]) => value)
    .flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, String(value))]);
