// Keys: what they do, and the list of them.

import { $, attempt, el } from "./dom.js";

const ARROWS = { ArrowUp: "↑", ArrowDown: "↓" };
const REPEATS = "+-,.UY↑↓";

/**
 * Make keys and buttons do things.
 * `keys` has [key, what the help says, what is done, id of a button or null]; `control` what is done by letter with
 * Ctrl; `digit` is called with 1 to 9 and whether Shift is down.
 */
export function listen(keys, control, digit) {
  for (const [key, help, action, button] of keys) {
    $("keys").append(el("div", {}, el("dt", {}, el("kbd", {}, key)), el("dd", {}, help)));
    if (button) $(button).addEventListener("click", () => attempt(action));
  }
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]") || event.altKey || event.isComposing) return;
    // the numeric pad's keys are arrows and the like while NumLock is off, or (Windows) while Shift is down
    const [, pad, digitOf] = /^(Digit|Numpad)([0-9])$/.exec(event.code) ?? [], plain = event.key.toUpperCase();
    const number = pad === "Digit" || digitOf === event.key ? Number(digitOf) : NaN;
    const name = ARROWS[event.key] ?? (number === 0 ? "0" : plain);
    if (event.key in ARROWS && event.target.matches("select")) return;
    let action = keys.find(([key]) => key === name)?.[2];
    if (event.ctrlKey || event.metaKey) action = control[(event.shiftKey ? "shift+" : "") + event.key.toLowerCase()];
    else if (number) action = () => digit(number, event.shiftKey);
    if (!action) return;
    event.preventDefault();
    if (!event.repeat || REPEATS.includes(name)) attempt(action); // a key held down saves, skips or answers once
  });
}
