// What may leave a panel showing the past without a word from the kernel: it comes into sight, its
// room or the page's theme changes, the page itself is shown again.

export class Changes {
  readonly #seen: IntersectionObserver;
  readonly #resized: ResizeObserver;
  readonly #themed: MutationObserver;
  readonly #dark = matchMedia("(prefers-color-scheme: dark)");
  readonly #changed: () => void;

  constructor(root: HTMLElement, changed: () => void) {
    this.#changed = changed;
    this.#seen = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && changed());
    this.#resized = new ResizeObserver(changed);
    this.#themed = new MutationObserver(changed);
    this.#resized.observe(root);
    for (const el of [document.documentElement, document.body]) this.#themed.observe(el, { attributes: true });
    this.#dark.addEventListener("change", changed);
    document.addEventListener("visibilitychange", changed);
  }

  /** Panels among those whose coming into sight counts; one that is known already changes nothing. */
  watch(panels: Iterable<HTMLElement>): void {
    for (const panel of panels) this.#seen.observe(panel);
  }

  close(): void {
    this.#seen.disconnect();
    this.#resized.disconnect();
    this.#themed.disconnect();
    this.#dark.removeEventListener("change", this.#changed);
    document.removeEventListener("visibilitychange", this.#changed);
  }
}
