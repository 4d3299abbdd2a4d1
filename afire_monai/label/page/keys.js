// Keys: what they do, and the list of them.

import { $, attempt, el } from "./dom.js";

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
    if (event.target.matches("input[type=number], select, textarea")) return;
    const number = /^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1];
    let action = keys.find(([name]) => name === event.key.toUpperCase())?.[2];
    if (event.ctrlKey || event.metaKey) action = control[(event.shiftKey ? "shift+" : "") + event.key.toLowerCase()];
    else if (number) action = () => digit(Number(number), event.shiftKey);
    if (!action) return;
    event.preventDefault();
    attempt(action);
  });
}
