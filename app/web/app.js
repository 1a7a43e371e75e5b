// Wires the page: files in, batches to the service, answers to grid, patients and exports.

import { announce, byId, throttled } from "./dom.js";
import { Detail } from "./detail.js";
import { printReport, saveCsv } from "./export.js";
import { cells as cellWords, count, duration, pictures, time } from "./format.js";
import { Grid } from "./grid.js";
import { fromDrop, fromInput, isPicture } from "./intake.js";
import { Model } from "./model.js";
import { Patients } from "./patients.js";
import { key } from "./service.js";
import { Store } from "./store.js";
import { needsReview } from "./subjects.js";
import { Thumbs } from "./thumbs.js";
import { Uploader } from "./uploader.js";

const RENDER_MS = 200;
const SAY_MS = 5000;

const store = new Store();
const thumbs = new Thumbs(store);
const uploader = new Uploader(store);
const detail = new Detail(store, thumbs, (cell) => { grid.render(); grid.focus(cell); });
const grid = new Grid(store, thumbs, (cell, shown) => detail.show(shown, shown.indexOf(cell)));
const patients = new Patients(store, (subject) => { grid.choosePatient(subject); render(); });
const model = new Model((facts) => {
  thumbs.cropPx = facts.manifest?.preprocessing?.crop_px ?? null;
  detail.band = facts.manifest?.review ?? null;
}, () => askKey());

const render = () => {
  grid.render();
  patients.render(grid.subject);
  renderProgress();
  const any = store.cells.size > 0;
  for (const id of ["export-csv", "print-report", "clear"]) byId(id).disabled = !any;
};
const renderSoon = throttled(render, RENDER_MS);
store.listeners.add(renderSoon);
uploader.addEventListener("change", renderSoon);

function tally() {
  const sums = { answered: 0, failed: 0, left: 0, review: 0, retriable: 0 };
  for (const cell of store.cells.values()) {
    if (cell.state === "answered") sums.answered += 1;
    else if (cell.state === "failed") sums.failed += 1;
    else sums.left += 1;
    sums.retriable += cell.state === "failed" && Boolean(cell.file);
    sums.review += needsReview(cell);
  }
  return sums;
}

function renderProgress() {
  const sums = tally();
  const total = store.cells.size;
  byId("progress-panel").hidden = total === 0;
  byId("progress").max = total || 1;
  byId("progress").value = total - sums.left;
  byId("progress-text").textContent = progressWords(sums, total);
  renderTrouble(sums);
  const active = uploader.state === "sending" || uploader.state === "waiting";
  byId("stop").hidden = !(active && sums.left);
  byId("resume").hidden = !(uploader.state === "stopped" && sums.left);
  byId("retry-failed").hidden = active || sums.retriable === 0;
  sayProgress(sums, total);
}

function progressWords(sums, total) {
  const words = [`${count(sums.answered)} of ${count(total)} answered`];
  if (sums.failed) words.push(`${count(sums.failed)} failed`);
  words.push(`${count(sums.review)} to review`);
  const rate = uploader.rate();
  if (uploader.state === "sending" && sums.left && rate) {
    words.push(`${rate.toFixed(1)} pictures/s`, `about ${duration(sums.left / rate)} left`);
  }
  if (uploader.state === "stopped" && sums.left) words.push(`stopped with ${count(sums.left)} left`);
  return words.join(" · ");
}

function renderTrouble(sums) {
  const { state } = uploader;
  byId("trouble").hidden = !(state === "waiting" || state === "key") || sums.left === 0;
  byId("try-now").hidden = state !== "waiting";
  byId("give-key").hidden = state !== "key";
  const seconds = Math.max(0, Math.ceil((uploader.retryAt - Date.now()) / 1000));
  const next = state === "waiting" ? ` Asking again in ${seconds} s.` : "";
  byId("trouble-text").textContent = `${uploader.trouble}${next} What is answered is kept.`;
}

let said = { state: "idle", at: 0 };
function sayProgress(sums, total) {
  const { state } = uploader;
  if (state !== said.state) {
    if (state === "waiting" || state === "key") announce(`${uploader.trouble} What is answered is kept.`);
    if (state === "idle" && total) announce(`Finished. ${progressWords(sums, total)}.`);
    if (state === "key") askKey();
  } else if (state === "sending" && performance.now() - said.at > SAY_MS) {
    announce(`${count(sums.answered)} of ${count(total)} answered`);
  } else {
    return;
  }
  said = { state, at: performance.now() };
}

async function add(found) {
  const wanted = found.filter(({ path }) => isPicture(path));
  const result = store.add(wanted);
  thumbs.request(store.all());
  const words = [`${pictures(result.added)} added`];
  if (result.again) words.push(`${count(result.again)} were here already`);
  if (found.length > wanted.length) words.push(`${count(found.length - wanted.length)} other files passed over`);
  announce(`${words.join(", ")}.`);
  render();
  uploader.start();
}

function wireIntake() {
  const drop = byId("drop");
  byId("choose-files").addEventListener("click", () => byId("files").click());
  byId("choose-folder").addEventListener("click", () => byId("folder").click());
  for (const id of ["files", "folder"]) {
    byId(id).addEventListener("change", (event) => {
      add(fromInput(event.target));
      event.target.value = "";
    });
  }
  // The whole window takes a drop: a picture that lands beside the field must not replace the page.
  window.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  window.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  window.addEventListener("drop", async (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    add(await fromDrop(event.dataTransfer));
  });
}

function askKey() {
  if (!byId("key").open) byId("key").showModal();
}

function wireControls() {
  byId("stop").addEventListener("click", () => { uploader.stop(); byId("progress-text").focus(); });
  byId("resume").addEventListener("click", () => uploader.start());
  byId("try-now").addEventListener("click", () => uploader.start());
  byId("retry-failed").addEventListener("click", () => uploader.retryFailed());
  byId("give-key").addEventListener("click", askKey);
  byId("key-form").addEventListener("submit", (event) => {
    if (event.submitter?.value !== "use") return;
    key.set(byId("key-input").value.trim());
    byId("key-input").value = "";
    model.load();
    uploader.start();
  });
  byId("export-csv").addEventListener("click", () => saveCsv(store.all()));
  byId("print-report").addEventListener("click", () => printReport(store.all(), model.facts));
  byId("clear").addEventListener("click", () => {
    byId("sure-text").textContent = `${cellWords(store.cells.size)} with their labels, also yours, are removed from this browser.`;
    byId("sure").showModal();
  });
  byId("sure").addEventListener("close", () => {
    if (byId("sure").returnValue === "clear") clear();
    byId("sure").returnValue = "";
  });
  window.addEventListener("beforeunload", (event) => { if (tally().left) event.preventDefault(); });
  setInterval(() => { if (["waiting", "sending"].includes(uploader.state)) renderProgress(); }, 1000);
}

function clear() {
  uploader.stop();
  thumbs.clear();
  detail.maps.clear();
  grid.subject = null;
  store.clear();
  uploader.set("idle", "");
  announce("All cells are removed.");
}

async function offerEarlier() {
  const { own, others } = await store.kept();
  if (own.length) await store.restore(own);
  if (!others.length) return;
  const newest = new Date(Math.max(...others.map((cell) => cell.savedAt)));
  byId("earlier-text").textContent = `This browser keeps ${cellWords(others.length)} of an earlier visit (${time(newest)}).`;
  byId("earlier").hidden = false;
  const done = () => { byId("earlier").hidden = true; byId("cells").focus(); };
  byId("restore").addEventListener("click", () => { store.restore(others); done(); });
  byId("forget").addEventListener("click", () => { store.forget(others); done(); });
}

wireIntake();
wireControls();
render();
model.load();
offerEarlier();
