// Small pictures for the grid, made in the browser, a few at a time.

const SIDE = 168;
const AT_ONCE = 3;

/**
 * Makes thumbnails of the square that the model sees. What a browser can't show (TIFF, some BMP)
 * stays without one; its tile says so, and the large view shows the service's rendering.
 */
export class Thumbs {
  constructor(store) {
    this.store = store;
    this.cropPx = null;
    this.queue = [];
    this.busy = 0;
    this.urls = new Map();
  }

  /** Make what is missing. */
  request(cells) {
    this.queue.push(...cells.filter((cell) => cell.file && !cell.thumb && !cell.thumbFailed));
    while (this.busy < AT_ONCE && this.queue.length) this.next();
  }

  /** Address of a cell's thumbnail; null if there is none. */
  url(cell) {
    if (!cell.thumb) return null;
    if (!this.urls.has(cell.id)) this.urls.set(cell.id, URL.createObjectURL(cell.thumb));
    return this.urls.get(cell.id);
  }

  clear() {
    this.queue = [];
    for (const url of this.urls.values()) URL.revokeObjectURL(url);
    this.urls.clear();
  }

  async next() {
    const cell = this.queue.shift();
    this.busy += 1;
    try {
      cell.thumb = await draw(cell.file, this.cropPx);
    } catch {
      cell.thumbFailed = true;
    } finally {
      this.busy -= 1;
      this.store.changed([cell]);
      if (this.queue.length) this.next();
    }
  }
}

async function draw(file, cropPx) {
  const picture = await createImageBitmap(file);
  try {
    const side = Math.min(cropPx ?? Infinity, Math.max(picture.width, picture.height));
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = SIDE;
    const pen = canvas.getContext("2d");
    pen.fillRect(0, 0, SIDE, SIDE); // black, as around a segmented cell
    const scale = SIDE / side;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(
      picture, (SIDE - picture.width * scale) / 2, (SIDE - picture.height * scale) / 2,
      picture.width * scale, picture.height * scale,
    );
    return await new Promise((done, failed) => {
      canvas.toBlob((blob) => (blob ? done(blob) : failed(new Error("no thumbnail"))), "image/webp", 0.85);
    });
  } finally {
    picture.close();
  }
}
