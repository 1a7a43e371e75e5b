// Small helpers to build and find elements. Text is always set as text, never as markup.

export const byId = (id) => document.getElementById(id);

/** Make an element: attributes by name, listeners as on<Event>, children as nodes or text. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2).toLowerCase(), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Make an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Tell a screen reader, once the present burst of messages is over. */
export const announce = (() => {
  let timer = 0;
  return (text) => {
    clearTimeout(timer);
    timer = setTimeout(() => { byId("polite").textContent = text; }, 150);
  };
})();

/** Run `work` at most once in `ms`, and once more at the end. */
export function throttled(work, ms) {
  let waiting = 0;
  return () => {
    if (waiting) return;
    waiting = setTimeout(() => { waiting = 0; work(); }, ms);
  };
}
