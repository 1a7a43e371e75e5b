// All cells, who listens to changes, and the copy in the browser's database that survives a reload.

const DATABASE = "leukoscope";
const TABLE = "cells";
const SESSION = "leukoscope-session";
const SAVED_FIELDS = [
  "id", "name", "path", "size", "modified", "state", "label", "confidence", "probabilities", "review", "reasons",
  "error", "model", "requestId", "answeredAt", "person", "thumb",
];

/** The cells of this tab. `onchange` hears of every change. */
export class Store {
  constructor() {
    this.cells = new Map();
    this.subjectOf = () => "";
    this.listeners = new Set();
    this.nextId = Date.now(); // above every id that was kept before a reload
    this.database = open().catch(() => null); // private windows may have none; the page works without
    this.unsaved = new Set();
    this.session = sessionStorage.getItem(SESSION) ?? crypto.randomUUID?.() ?? String(Date.now());
    sessionStorage.setItem(SESSION, this.session);
  }

  all() { return [...this.cells.values()]; }

  /** Take in files. A cell that was restored without its picture gets it back. */
  add(found) {
    const known = new Map(this.all().map((cell) => [`${cell.path} ${cell.size} ${cell.modified}`, cell]));
    const result = { added: 0, again: 0 };
    for (const { file, path } of found) {
      const size = file?.size ?? 0;
      const modified = file?.lastModified ?? 0;
      const twin = known.get(`${path} ${size} ${modified}`);
      if (twin) {
        twin.file = file;
        result.again += 1;
        continue;
      }
      const cell = {
        id: this.nextId++, file, path, name: path.split("/").at(-1), size, modified, state: "waiting", person: null,
        thumb: null,
      };
      if (!file) Object.assign(cell, { state: "failed", error: "The browser could not read this file." });
      cell.subject = this.subjectOf(cell);
      this.cells.set(cell.id, cell);
      known.set(`${path} ${size} ${modified}`, cell);
      result.added += 1;
    }
    this.changed([]);
    return result;
  }

  update(cell, fields) {
    Object.assign(cell, fields);
    this.changed([cell]);
  }

  setSubjectRule(subjectOf) {
    this.subjectOf = subjectOf;
    for (const cell of this.cells.values()) cell.subject = subjectOf(cell);
    this.changed([]);
  }

  changed(cells) {
    for (const cell of cells) {
      if (cell.state === "answered" || cell.state === "failed") this.unsaved.add(cell);
    }
    for (const listener of this.listeners) listener();
    this.saving ??= setTimeout(() => this.save(), 300);
  }

  /** Write what has changed to the database. */
  async save() {
    this.saving = null;
    const cells = [...this.unsaved];
    this.unsaved.clear();
    await this.write((table) => {
      for (const cell of cells) {
        if (!this.cells.has(cell.id)) continue;
        const saved = Object.fromEntries(SAVED_FIELDS.map((field) => [field, cell[field] ?? null]));
        table.put({ ...saved, session: this.session, savedAt: Date.now() });
      }
    });
  }

  async clear() {
    this.cells.clear();
    this.unsaved.clear();
    this.changed([]);
    await this.write((table) => table.delete(range(this.session)));
  }

  /** Cells that this tab kept before a reload; and those of other, earlier visits. */
  async kept() {
    const database = await this.database;
    if (!database) return { own: [], others: [] };
    const all = await settled(database.transaction(TABLE).objectStore(TABLE).getAll()).catch(() => []);
    return {
      own: all.filter((cell) => cell.session === this.session),
      others: all.filter((cell) => cell.session !== this.session),
    };
  }

  /** Take kept cells in; those of an earlier visit become this one's. */
  async restore(kept) {
    for (const { session, savedAt, ...cell } of kept) {
      const id = session === this.session ? cell.id : this.nextId++;
      const restored = { ...cell, id, file: null };
      restored.subject = this.subjectOf(restored);
      this.cells.set(id, restored);
      this.unsaved.add(restored);
    }
    this.changed([]);
    await this.save();
    await this.forget(kept);
  }

  async forget(kept) {
    const sessions = new Set(kept.map((cell) => cell.session).filter((session) => session !== this.session));
    await this.write((table) => { for (const session of sessions) table.delete(range(session)); });
  }

  async write(work) {
    const database = await this.database;
    if (!database) return;
    const transaction = database.transaction(TABLE, "readwrite");
    work(transaction.objectStore(TABLE));
    await new Promise((done) => { transaction.oncomplete = transaction.onerror = transaction.onabort = done; });
  }
}

const range = (session) => IDBKeyRange.bound([session], [session, []]);

const settled = (request) =>
  new Promise((done, failed) => {
    request.onsuccess = () => done(request.result);
    request.onerror = () => failed(request.error);
  });

function open() {
  const request = indexedDB.open(DATABASE, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: ["session", "id"] });
  return settled(request);
}
