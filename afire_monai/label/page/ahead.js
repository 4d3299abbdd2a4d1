// The image after the one that is shown: chosen and fetched while that one is looked at, so that it is there at once.

import * as api from "./api.js";

export class Ahead {
  #held = null; // one at most: {strategy, chosen (a promise of {id, picture}, or of null)}

  constructor(opinions) { this.opinions = opinions; }

  /** Choose and fetch an image, unless one is held. */
  begin(strategy, shown) {
    this.#held ??= { strategy, chosen: this.#choose(strategy, shown).catch(() => null) }; // asked again when it is due
  }

  async #choose(strategy, shown) {
    const { id } = await api.nextSample(strategy);
    if (!id || id === shown) return null;
    const picture = api.pixels(id);
    picture.then(() => this.opinions.prepare(id), () => {});
    return { id, picture };
  }

  /** Give what is held, once, if it was chosen by this strategy: {id, picture (a promise)}, or null. */
  async take(strategy) {
    const held = this.#held;
    this.forget();
    return held?.strategy === strategy ? held.chosen : null;
  }

  /** Hold an image no more that was labelled. */
  leaveOut(id) {
    const held = this.#held;
    if (held) held.chosen = held.chosen.then((chosen) => (chosen?.id === id ? null : chosen));
  }

  /** Drop what is held, for other models would choose otherwise. */
  forget() { this.#held = null; }
}
