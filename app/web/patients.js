// The table of patients: cells, share of ALL with its interval, cells to review.

import { byId, el, svg } from "./dom.js";
import { count, percent } from "./format.js";
import { DEFAULT_PATTERN, subjectRule, summarise, wilson } from "./subjects.js";

const RULE = "leukoscope-subject-rule";
const SCALE = 100; // of the little interval plot, in its own units

export class Patients {
  /** @param {(subject: string) => void} choose called when a person asks for one patient's cells */
  constructor(store, choose) {
    this.store = store;
    this.choose = choose;
    this.rule = saved();
    byId("subject-rule").value = this.rule.kind;
    byId("pattern").value = this.rule.pattern;
    byId("subject-rule").addEventListener("change", () => this.apply());
    byId("pattern").addEventListener("input", () => this.apply());
    this.apply();
  }

  apply() {
    const rule = { kind: byId("subject-rule").value, pattern: byId("pattern").value || DEFAULT_PATTERN };
    byId("pattern-row").hidden = rule.kind !== "pattern";
    try {
      this.store.setSubjectRule(subjectRule(rule));
      byId("pattern-error").textContent = "";
      byId("pattern").removeAttribute("aria-invalid");
      localStorage.setItem(RULE, JSON.stringify(rule));
    } catch (error) {
      byId("pattern-error").textContent = `Not usable: ${error.message}`;
      byId("pattern").setAttribute("aria-invalid", "true");
    }
  }

  render(chosen) {
    const { subjects, total } = summarise(this.store.all());
    byId("patients-panel").hidden = total.cells === 0;
    const table = byId("patients");
    const focused = document.activeElement?.dataset?.subject;
    const answered = subjects.filter((sum) => sum.cells);
    table.tBodies[0].replaceChildren(...answered.map((sum) => this.row(sum, chosen)));
    table.tFoot.replaceChildren(figures(el("th", { scope: "row" }, "Total"), total));
    if (focused !== undefined && !table.contains(document.activeElement)) {
      [...table.querySelectorAll("button")].find((button) => button.dataset.subject === focused)?.focus();
    }
  }

  row(sum, chosen) {
    const button = el(
      "button",
      { type: "button", class: "link", "aria-pressed": String(chosen === sum.subject), onClick: () => this.choose(sum.subject) },
      sum.subject || "not told",
    );
    button.dataset.subject = sum.subject;
    return figures(el("th", { scope: "row" }, button), sum);
  }
}

function figures(head, sum) {
  const cell = (text) => el("td", { class: "number" }, text);
  return el(
    "tr", {}, head, cell(count(sum.cells)), cell(count(sum.positive)),
    ...share(sum), cell(count(sum.review)),
  );
}

function share(sum) {
  if (!sum.told) return [el("td", { class: "number" }, "–"), el("td", {})];
  const part = sum.positive / sum.told;
  const [low, high] = wilson(sum.positive, sum.told);
  const plot = svg("svg", { viewBox: `0 0 ${SCALE} 10`, class: "interval", "aria-hidden": "true", preserveAspectRatio: "none" },
    svg("line", { x1: 0, x2: SCALE, y1: 5, y2: 5, class: "axis" }),
    svg("line", { x1: SCALE * low, x2: SCALE * high, y1: 5, y2: 5, class: "range" }),
    svg("line", { x1: SCALE * part, x2: SCALE * part, y1: 0, y2: 10, class: "point" }));
  const bounds = `${(100 * low).toFixed(0)}–${(100 * high).toFixed(0)}`;
  return [
    el("td", { class: "number" }, percent(part, 0)),
    el("td", { class: "share" }, plot, el("small", {}, bounds)),
  ];
}

function saved() {
  try {
    const rule = JSON.parse(localStorage.getItem(RULE));
    subjectRule(rule);
    return rule;
  } catch {
    return { kind: "pattern", pattern: DEFAULT_PATTERN };
  }
}
