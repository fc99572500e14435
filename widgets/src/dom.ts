// Elements with a class, a name for tests, and text; never markup from outside.

export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  className = "",
  name?: string,
  text?: string,
): HTMLElementTagNameMap[K] {
  const el = document.createElement(tag);
  if (className) el.className = className;
  if (name) el.dataset["llmserve"] = name;
  if (text !== undefined) el.textContent = text;
  return el;
}

export function button(text: string, name: string, title: string, onClick: () => void): HTMLButtonElement {
  const el = element("button", "", name, text);
  el.type = "button";
  el.title = title;
  el.addEventListener("click", onClick);
  return el;
}
