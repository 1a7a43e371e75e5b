// Sends waiting cells in batches, two at a time. Trouble pauses it; nothing that was answered is asked again.

import { KeyWanted, NotNow, predict } from "./service.js";

const AT_ONCE = 2;
const MOST_CELLS = 16;
const MOST_BYTES = 24 * 1024 * 1024;
const FIRST_WAIT_S = 2;
const LONGEST_WAIT_S = 30;

/**
 * state: "idle", "sending", "stopped", "waiting" (for the service, until retryAt) or "key".
 */
export class Uploader extends EventTarget {
  constructor(store) {
    super();
    this.store = store;
    this.state = "idle";
    this.trouble = "";
    this.retryAt = 0;
    this.busy = 0;
    this.failures = 0;
    this.abort = new AbortController();
    this.timer = 0;
    this.ended = []; // times of answers, for the rate
  }

  /** Send what is waiting, until nothing is. */
  start() {
    clearTimeout(this.timer);
    if (this.abort.signal.aborted) this.abort = new AbortController();
    this.set("sending", "");
    for (let worker = this.busy; worker < AT_ONCE; worker += 1) this.work();
  }

  /** Give up what is on its way; those cells wait again. */
  stop() {
    clearTimeout(this.timer);
    this.abort.abort();
    this.set("stopped", "");
  }

  retryFailed() {
    for (const cell of this.store.all()) {
      if (cell.state === "failed" && cell.file) this.store.update(cell, { state: "waiting", error: null });
    }
    this.start();
  }

  /** Pictures a second over the last half minute. */
  rate() {
    const now = performance.now();
    this.ended = this.ended.filter((at) => now - at < 30_000);
    const span = now - (this.ended[0] ?? now);
    return span > 500 ? (1000 * this.ended.length) / span : null;
  }

  set(state, trouble) {
    this.state = state;
    this.trouble = trouble;
    this.dispatchEvent(new Event("change"));
  }

  async work() {
    this.busy += 1;
    try {
      for (let batch = this.take(); this.state === "sending" && batch.length; batch = this.take()) {
        await this.send(batch);
      }
    } finally {
      this.busy -= 1;
      const left = this.store.all().some((cell) => cell.state === "waiting" && cell.file);
      if (this.state === "sending" && !this.busy) {
        if (left) this.start();
        else this.set("idle", "");
      }
    }
  }

  take() {
    if (this.state !== "sending") return [];
    const batch = [];
    let bytes = 0;
    for (const cell of this.store.cells.values()) {
      if (cell.state !== "waiting" || !cell.file) continue;
      if (batch.length === MOST_CELLS || (batch.length && bytes + cell.size > MOST_BYTES)) break;
      batch.push(cell);
      bytes += cell.size;
    }
    for (const cell of batch) cell.state = "sending";
    return batch;
  }

  async send(cells) {
    const pictures = await read(cells);
    const readable = cells.filter((cell, index) => pictures[index]);
    cells.filter((cell, index) => !pictures[index])
      .forEach((cell) => this.fail(cell, "The file can't be read from the disk any more."));
    if (!readable.length) return;
    try {
      const answer = await predict(pictures.filter(Boolean), this.abort.signal);
      this.failures = 0;
      this.accept(readable, answer);
    } catch (error) {
      await this.handle(readable, error);
    }
  }

  accept(cells, answer) {
    const at = new Date().toISOString();
    cells.forEach((cell, index) => {
      const item = answer.predictions?.[index];
      this.ended.push(performance.now());
      if (!item || item.error) {
        this.fail(cell, item?.error?.detail ?? "The service sent no answer for this picture.");
        return;
      }
      const { label, confidence, probabilities, review, reasons } = item;
      this.store.update(cell, {
        state: "answered", label, confidence, probabilities, review, reasons, error: null,
        model: answer.model, requestId: answer.request_id, answeredAt: at,
      });
    });
  }

  async handle(cells, error) {
    if (error instanceof NotNow) return this.wait(cells, error);
    if (error instanceof KeyWanted) return this.pause(cells, "key", error.message);
    if (this.abort.signal.aborted) return this.pause(cells, this.state, this.trouble);
    if (error.errors?.length === cells.length) {
      cells.forEach((cell, index) => this.fail(cell, error.errors[index].error.detail));
    } else if (cells.length === 1) {
      this.fail(cells[0], error.message);
    } else {
      // One of them spoils the request, or all are too much: halves tell which.
      const half = Math.ceil(cells.length / 2);
      await this.send(cells.slice(0, half));
      if (this.state === "sending") await this.send(cells.slice(half));
      else this.pause(cells.slice(half), this.state, this.trouble);
    }
    return undefined;
  }

  wait(cells, error) {
    this.failures += 1;
    const seconds = error.retryAfterS ?? Math.min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (this.failures - 1));
    this.retryAt = Date.now() + 1000 * seconds;
    this.pause(cells, this.state === "stopped" ? "stopped" : "waiting", error.message);
    if (this.state !== "waiting") return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.start(), 1000 * seconds);
  }

  pause(cells, state, trouble) {
    for (const cell of cells) if (cell.state === "sending") cell.state = "waiting";
    this.set(state, trouble);
  }

  fail(cell, message) { this.store.update(cell, { state: "failed", error: message }); }
}

/** Read files into memory, so that one that is gone from the disk is not taken for a lost network. */
const read = (cells) =>
  Promise.all(cells.map(async (cell) => {
    try {
      return { name: cell.name, data: new Blob([await cell.file.arrayBuffer()]) };
    } catch {
      return null;
    }
  }));
