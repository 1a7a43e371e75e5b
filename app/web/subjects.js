// Whose cell it is, and what a patient's cells say together.

export const DEFAULT_PATTERN = String.raw`UID_(?P<subject>H?\d+)_\d+_\d+_(?P<label>all|hem)`;
const Z_95 = 1.959963984540054;

/**
 * Make the function from a cell to its patient.
 * @param {{kind: string, pattern: string}} rule kind is "pattern" or "folder"
 * @throws {SyntaxError} the pattern is none, or has no group named subject
 */
export function subjectRule(rule) {
  if (rule.kind === "folder") return (cell) => cell.path.split("/").slice(-2, -1)[0] ?? "";
  // Python's spelling of a named group is understood too, so that one pattern serves the command line and this page.
  const pattern = new RegExp(rule.pattern.replaceAll("(?P<", "(?<"), "i");
  if (!/\(\?<subject>/.test(pattern.source)) throw new SyntaxError("expected a group (?<subject>…)");
  return (cell) => (pattern.exec(cell.name)?.groups.subject ?? "").toUpperCase();
}

/** The label that counts: a person's before the model's; null where the person could not tell. */
export function finalLabel(cell) {
  if (cell.person === "unsure") return null;
  return cell.person ?? cell.label;
}

export const needsReview = (cell) => cell.state === "answered" && cell.review && !cell.person;

/** 95 % score interval of a share (Wilson 1927, doi:10.1080/01621459.1927.10502953). */
export function wilson(hits, trials) {
  const share = hits / trials;
  const spread = Z_95 ** 2 / trials;
  const half = Z_95 * Math.sqrt((share * (1 - share)) / trials + spread / (4 * trials));
  const centre = share + spread / 2;
  return [Math.max(0, (centre - half) / (1 + spread)), Math.min(1, (centre + half) / (1 + spread))];
}

/** Count cells by patient, in natural order of names, and over all. */
export function summarise(cells) {
  const total = tally("");
  const bySubject = new Map();
  for (const cell of cells) {
    if (!bySubject.has(cell.subject)) bySubject.set(cell.subject, tally(cell.subject));
    add(bySubject.get(cell.subject), cell);
    add(total, cell);
  }
  const order = new Intl.Collator("en", { numeric: true });
  return { subjects: [...bySubject.values()].sort((a, b) => order.compare(a.subject, b.subject)), total };
}

const tally = (subject) => ({ subject, cells: 0, told: 0, positive: 0, review: 0, labelled: 0, failed: 0 });

function add(sum, cell) {
  if (cell.state === "failed") sum.failed += 1;
  if (cell.state !== "answered") return;
  sum.cells += 1;
  sum.review += needsReview(cell);
  sum.labelled += Boolean(cell.person);
  const label = finalLabel(cell);
  sum.told += label !== null;
  sum.positive += label === "ALL";
}
