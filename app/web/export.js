// What leaves the page: a CSV file, and a report to print.

import { byId, el } from "./dom.js";
import { cells as cellWords, count, percent, PERSON_WORDS, time } from "./format.js";
import { finalLabel, needsReview, summarise, wilson } from "./subjects.js";

const COLUMNS = {
  file: (cell) => cell.path,
  subject: (cell) => cell.subject,
  label: (cell) => cell.label,
  confidence: (cell) => cell.confidence,
  p_all: (cell) => cell.probabilities?.ALL,
  p_hem: (cell) => cell.probabilities?.HEM,
  review: (cell) => cell.review,
  reasons: (cell) => cell.reasons?.join(";"),
  person_label: (cell) => cell.person,
  final_label: (cell) => (cell.state === "answered" ? finalLabel(cell) : null),
  error: (cell) => cell.error,
  model: (cell) => cell.model?.name,
  version: (cell) => cell.model?.version,
  request_id: (cell) => cell.requestId,
  answered_at: (cell) => cell.answeredAt,
};

const ended = (cells) =>
  cells.filter((cell) => cell.state === "answered" || cell.state === "failed").sort((a, b) => a.id - b.id);

/** One cell of RFC 4180; text that a spreadsheet would run as a formula gets a leading '. */
export function csvCell(value) {
  if (value === null || value === undefined) return "";
  let text = String(value);
  if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** All cells that have ended, as CSV, in the order in which they were added. */
export function toCsv(cells) {
  const lines = ended(cells).map((cell) => Object.values(COLUMNS).map((column) => csvCell(column(cell))).join(","));
  return [Object.keys(COLUMNS).join(","), ...lines, ""].join("\r\n");
}

export function saveCsv(cells) {
  const url = URL.createObjectURL(new Blob([toCsv(cells)], { type: "text/csv;charset=utf-8" }));
  const stamp = new Date().toISOString().slice(0, 16).replace(/[-:]/g, "").replace("T", "-");
  const link = el("a", { href: url, download: `leukoscope-${stamp}.csv` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Fill the report and open the browser's print dialog. */
export function printReport(cells, facts) {
  const report = byId("report");
  report.replaceChildren(...reportParts(ended(cells), facts));
  report.hidden = false;
  const after = () => { report.hidden = true; report.replaceChildren(); };
  window.addEventListener("afterprint", after, { once: true });
  window.print();
}

function reportParts(cells, facts) {
  const { subjects, total } = summarise(cells);
  const models = [...new Set(cells.filter((cell) => cell.model).map((cell) => `${cell.model.name} ${cell.model.version}`))];
  const times = cells.map((cell) => cell.answeredAt).filter(Boolean).sort();
  const hash = facts && models.includes(`${facts.name} ${facts.version}`) ? facts.hashes : {};
  return [
    el("h1", {}, "Leukoscope: report on single cells"),
    el("p", {}, "For research use. Not a medical device: labels of cells are no diagnosis."),
    el("dl", {}, ...[
      ["Made", time(new Date())], ["Model", models.join("; ")],
      ...Object.entries(hash).map(([file, digest]) => [`SHA-256 of ${file}`, digest]),
      ["Answered", times.length ? `${time(new Date(times[0]))} to ${time(new Date(times.at(-1)))}` : ""],
      ["Cells", `${cellWords(total.cells)}; ${count(total.review)} still to review; ${count(total.labelled)} looked at by a person; ${count(total.failed)} failed`],
      ...measured(facts, models),
    ].flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, value)])),
    el("h2", {}, "Patients"),
    table(["Patient", "Cells", "ALL", "Share ALL", "95 % interval", "To review"],
      [...subjects, { ...total, subject: "Total" }].map(patientRow)),
    el("p", {}, "A person's label counts before the model's; cells that the person could not tell are left out of the share. " +
      "The interval (Wilson) is for the number of cells alone, not for the model's mistakes."),
    el("h2", {}, "Cells"),
    table(["File", "Patient", "Model", "Confidence", "Review", "Person"], [...cells].sort(reviewFirst).map(cellRow)),
  ];
}

const reviewFirst = (a, b) => needsReview(b) - needsReview(a) || a.id - b.id;

function measured(facts, models) {
  const test = facts?.metrics?.test;
  if (!test || !models.includes(`${facts.name} ${facts.version}`)) return [];
  const figure = (name) => (typeof test[name] === "number" ? test[name].toFixed(3) : "not measured");
  return [["Measured", `on ${count(test.cells)} cells of people not trained on: weighted F1 ${figure("weighted_f1")}, ` +
    `AUROC ${figure("auroc")}, sensitivity ${figure("sensitivity")}, specificity ${figure("specificity")}`]];
}

function patientRow(sum) {
  const interval = sum.told ? wilson(sum.positive, sum.told).map((bound) => percent(bound)).join(" – ") : "–";
  const share = sum.told ? percent(sum.positive / sum.told) : "–";
  return [sum.subject || "not told", count(sum.cells), count(sum.positive), share, interval, count(sum.review)];
}

function cellRow(cell) {
  if (cell.state === "failed") return [cell.path, cell.subject, "failed", "", cell.error, ""];
  const person = cell.person ? PERSON_WORDS[cell.person].replace("you: ", "") : "";
  return [cell.path, cell.subject, cell.label, percent(cell.confidence), cell.review ? "yes" : "", person];
}

const table = (heads, rows) =>
  el("table", {}, el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((value) => el("td", {}, value))))));
