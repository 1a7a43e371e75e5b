// The service's HTTP interface: requests, the key, and what went wrong in words that a person understands.

const KEY_HEADER = "X-API-Key";
const KEY_STORE = "leukoscope-key";
const NOT_NOW = new Set([429, 502, 503, 504]);

/** The service can't answer now; asking again later may help. */
export class NotNow extends Error {
  constructor(message, retryAfterS) {
    super(message);
    this.retryAfterS = retryAfterS;
  }
}

/** The service wants a key, or another one. */
export class KeyWanted extends Error {}

/** The service refused this request; the same one will be refused again. */
export class Refused extends Error {
  constructor(message, status, errors) {
    super(message);
    this.status = status;
    this.errors = errors;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY_STORE) ?? "",
  set: (value) => sessionStorage.setItem(KEY_STORE, value),
};

/** Classify pictures: [{name, data}] in, the body of the answer out. */
export async function predict(pictures, signal) {
  const form = new FormData();
  for (const { name, data } of pictures) form.append("files", data, name);
  return (await ask("predict", { method: "POST", body: form, signal })).json();
}

/** The picture that shows which regions spoke for the label, as a Blob. */
export async function explain(file, style, signal) {
  const form = new FormData();
  form.append("file", file, file.name);
  return (await ask(`explain?style=${style}`, { method: "POST", body: form, signal })).blob();
}

export const activeModel = async () => (await ask("models/active")).json();
export const modelCard = async () => (await ask("models/active/card")).text();

async function ask(path, options = {}) {
  const headers = key.get() ? { [KEY_HEADER]: key.get() } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", redirect: "error" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new NotNow("The service can't be reached.", null);
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const words = problem.detail ?? `The service answered with status ${response.status}.`;
  if (response.status === 401 || response.status === 403) throw new KeyWanted(words);
  if (NOT_NOW.has(response.status)) throw new NotNow(notNow(response.status, words), retryAfter(response));
  throw new Refused(words, response.status, problem.errors ?? null);
}

function notNow(status, words) {
  if (status === 429) return "The service is busy with other pictures.";
  if (status === 504) return "The service did not answer in time.";
  return `The service is not ready: ${words}`;
}

/** Seconds of Retry-After (RFC 9110, 10.2.3), a number or a date; null without one. */
function retryAfter(response) {
  const value = response.headers.get("Retry-After");
  if (!value) return null;
  const seconds = /^\d+$/.test(value) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(1, seconds) : null;
}
