// Numbers and words as people read them.

const whole = new Intl.NumberFormat("en");

export const count = (number) => whole.format(number);
export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
export const cells = (number) => `${count(number)} ${number === 1 ? "cell" : "cells"}`;
export const pictures = (number) => `${count(number)} ${number === 1 ? "picture" : "pictures"}`;

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

export const time = (date) =>
  date.toLocaleString("en-GB", { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit" });

const REASONS = {
  "low-confidence": "The probability lies in the range where this model is often wrong.",
  "out-of-distribution": "The picture is unlike those that the model was measured on.",
};

/** Say why a person should look; a reason that this page does not know is shown as it came. */
export const reason = (name) => REASONS[name] ?? name;

export const PERSON_WORDS = { ALL: "you: ALL", HEM: "you: HEM", unsure: "you: can't tell" };
