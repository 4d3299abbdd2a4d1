// Elements of the page. Text from the server is only ever text: nothing here reads markup.

export const $ = (id) => document.getElementById(id);

/** Make an element: properties (`class`, `on…`, or attributes), then children or text. */
export function el(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Say something in the line of messages, which screen readers read out. What is not bad fades from the picture. */
export function say(text, kind = "") {
  $("message").textContent = text;
  $("message").className = kind;
  for (const fading of $("message").getAnimations()) fading.cancel();
  if (kind === "bad") return;
  $("message").animate([{ opacity: 1 }, { opacity: 0 }], { delay: 6000, duration: 500, fill: "forwards" });
}

/** Do something that may be refused, and say so if it is. */
export async function attempt(action) {
  try {
    return await action();
  } catch (error) {
    say(error.message, "bad");
    return undefined;
  }
}

/** Ask a question in words; gives true or false. */
export function confirmed(question, yes) {
  $("question").textContent = question;
  $("yes").textContent = yes;
  const dialog = $("ask");
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
