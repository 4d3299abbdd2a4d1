// The list of findings: what is entered of each, and what the model says of it.

import { $, el } from "./dom.js";

const STATES = {
  null: ["", "not said"], 1: ["yes", "✓ present"], 0: ["no", "– absent"], "-1": ["maybe", "? uncertain"],
};
/** What comes after each value when it is pressed again. */
export const CYCLE = { null: 1, 1: 0, 0: null, "-1": null };

/**
 * Show a button for each finding.
 * `values` has 1, 0, -1 or null by name (or is null without an image), `opinions` {probability, above_threshold},
 * `bare` the names that are not calibrated; `press` is called with the place of a finding and whether Shift is down.
 */
export function showFindings(names, values, opinions, bare, press) {
  $("findings").replaceChildren(...names.map((name, place) => {
    const [look, words] = STATES[values?.[name] ?? null];
    const { probability, above_threshold: above } = opinions[name] ?? {};
    const number = probability === undefined ? ""
      : `${above ? "▲ " : ""}${probability.toFixed(2)}${bare.includes(name) ? "*" : ""}`;
    return el("li", {}, el("button", {
      type: "button", id: `finding-${place}`, class: look, disabled: !values,
      onclick: (event) => press(place, event.shiftKey),
    }, place < 9 ? el("kbd", {}, String(place + 1)) : el("span"), el("span", { class: "name" }, name),
    el("small", {}, number), el("span", { class: "state" }, words)));
  }));
  $("findings-note").textContent = !Object.keys(opinions).length ? ""
    : `Numbers: the model’s probability, ▲ from its threshold on${bare.length ? "; * not calibrated" : ""}`;
}

/** Go to another button: findings after the ninth have no key of their own. */
export function goTo(way) {
  const buttons = [...$("findings").querySelectorAll("button")], place = buttons.indexOf(document.activeElement);
  buttons.at(place < 0 && way < 0 ? -1 : (place + way) % buttons.length)?.focus();
}
