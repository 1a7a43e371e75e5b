// From what was dropped or chosen to a flat list of picture files with their paths.

const PICTURE = /\.(bmp|png|jpe?g|tiff?|webp)$/i;

/** Whether a name is a picture's; `._cell.bmp` is a Mac's note about one. */
export const isPicture = (path) => {
  const parts = path.split("/");
  return PICTURE.test(path) && !parts.at(-1).startsWith(".") && !parts.includes("__MACOSX");
};

/** Files of an <input>, with the path inside the chosen folder. */
export const fromInput = (input) =>
  [...input.files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));

/**
 * Files of a drop, folders walked to the bottom. Must be called in the event itself:
 * the browser empties the list of items as soon as the handler returns.
 */
export async function fromDrop(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ file, path: file.name }));
  const found = [];
  for (const entry of entries) await walk(entry, entry.name, found);
  return found;
}

async function walk(entry, path, found) {
  if (entry.isFile) {
    try {
      found.push({ file: await new Promise((done, failed) => entry.file(done, failed)), path });
    } catch {
      found.push({ file: null, path });
    }
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    // A reader gives at most some hundred entries a call, and none at the end.
    const some = await new Promise((done, failed) => reader.readEntries(done, failed)).catch(() => []);
    if (!some.length) return;
    const sorted = some.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
    for (const child of sorted) await walk(child, `${path}/${child.name}`, found);
  }
}
