// The dashboard's module: takes in what the kernel sends, and keeps the page in step with it.

import { Changes } from "./changes.ts";
import { Charts } from "./charts.ts";
import { decode } from "./codec.ts";
import { showKnobs } from "./controls.ts";
import { Feed, SILENCE_MS } from "./feed.ts";
import type { ControlPlace, Delta, FromKernel, Mark, Panel, Snapshot, TapeMessage, ToKernel } from "./messages.ts";
import { Page, type State } from "./page.ts";
import { Playground } from "./playground.ts";
import { Requests } from "./requests.ts";
import { Rows } from "./rows.ts";
import { Tape } from "./tape.ts";
import { TapeView } from "./tapeview.ts";
import { WhyPanel } from "./why.ts";
import { asView, type Cleanup, type Context, type Model } from "./widget.ts";

const TICK_MS = 500;

class Dashboard {
  /** Distinguishes this page from another that shows the same view. */
  readonly #id = Math.random().toString(36).slice(2, 10);
  readonly #model: Model;
  readonly #page: Page;
  readonly #charts: Charts;
  readonly #feed = new Feed();
  readonly #marks = new Map<number, Mark>();
  readonly #changes: Changes;
  readonly #ticking: ReturnType<typeof setInterval>;
  readonly #why = new WhyPanel();
  readonly #tape = new Tape();
  readonly #tapeView: TapeView;
  readonly #requests: Requests;
  readonly #playground = new Playground((message) => this.#say(message));
  #rows = new Rows(0, 1);
  #columns: string[] = [];
  #panels: Panel[] = [];
  #controls: Record<string, ControlPlace> = {};
  #ended = false;
  #empty = false;
  #tableStale = false;

  constructor({ model, el }: Context) {
    this.#model = model;
    this.#page = new Page(el, () => this.#charts.refresh());
    this.#charts = new Charts(this.#page);
    const select = (number: number | undefined) => this.#select(number);
    this.#tapeView = new TapeView(this.#tape, this.#page.probe, select);
    this.#requests = new Requests(this.#tape, select);
    this.#page.place([this.#why.el], [this.#tapeView.el, this.#requests.el, this.#playground.el]);
    this.#page.onPause = (paused) => {
      this.#charts.pause(paused);
      this.#tapeView.pause(paused);
    };
    this.#page.onZoomReset = () => this.#charts.zoom(undefined);
    this.#changes = new Changes(this.#page.root, () => this.#refresh());
    model.on("msg:custom", this.#heard);
    this.#ticking = setInterval(() => this.#tick(), TICK_MS);
    this.#say(this.#feed.hello(performance.now()));
  }

  close(): void {
    clearInterval(this.#ticking);
    this.#changes.close();
    this.#model.off("msg:custom", this.#heard);
    this.#charts.close();
    this.#tapeView.close();
    this.#say({ kind: "bye" });
  }

  readonly #heard = (content: unknown, buffers: (DataView | ArrayBuffer)[]): void => {
    const message = content as FromKernel;
    if (message.kind === "picture") void this.#draw(message.id);
    if (message.kind === "why") this.#why.show(message);
    if (message.kind === "replies" && !this.#playground.take(message)) this.#say({ kind: "replies" });
    if (message.kind === "tape") this.#takeTape(message, asView(buffers[0]!), asView(buffers[1]!));
    if (message.kind !== "snapshot" && message.kind !== "delta") return;
    const { take, reply } = this.#feed.accept(message, performance.now());
    if (take) this.#take(message, asView(buffers[0]!));
    if (reply) this.#say(reply);
  };

  #take(message: Snapshot | Delta, bytes: DataView): void {
    if (message.kind === "snapshot") this.#reset(message);
    this.#rows.append(decode(bytes));
    for (const mark of message.marks ?? []) this.#marks.set(mark.id, mark);
    if (message.panels) {
      this.#page.setPanels((this.#panels = message.panels));
      this.#changes.watch(this.#page.panels.values());
    }
    if (message.status !== undefined) this.#page.setStatus(message.status);
    if (message.empty !== undefined) this.#empty = message.empty;
    if (message.ended !== undefined) this.#ended = message.ended;
    if (message.knobs) void showKnobs(this.#model, this.#controls, message.knobs);
    this.#state(this.#ended ? "ended" : "live");
    this.#page.setCounts(this.#rows.length, this.#marks.size, message.seq);
    this.#charts.show({
      rows: this.#rows,
      columns: this.#columns,
      panels: this.#panels,
      marks: [...this.#marks.values()],
    });
  }

  #takeTape(message: TapeMessage, steps: DataView, segments: DataView): void {
    if (!this.#tape.take(message, steps, segments)) return this.#say({ kind: "tape" });
    this.#tapeView.draw();
    if (message.whole) this.#drawTable();
    else this.#tableStale = true; // a table that changes five times a second is not read
  }

  /** Nothing can be asked where no kernel answers. */
  #state(state: State, silentFor = 0): void {
    this.#page.setState(state, silentFor);
    this.#page.setEmpty(this.#empty && state === "live");
    this.#playground.enable(state === "live");
  }

  #select(number: number | undefined): void {
    this.#tapeView.select(number);
    this.#requests.select(number);
    this.#drawTable();
  }

  #drawTable(): void {
    this.#tableStale = false;
    this.#requests.draw(this.#rows.last);
  }

  #refresh(): void {
    this.#charts.refresh();
    this.#tapeView.draw();
  }

  #reset(snapshot: Snapshot): void {
    this.#columns = snapshot.columns;
    this.#controls = snapshot.controls;
    this.#rows = new Rows(snapshot.columns.length, snapshot.capacity);
    this.#marks.clear();
    this.#page.describe(snapshot.about, snapshot.window_s);
    this.#tapeView.blockSize = snapshot.about.block_size;
  }

  #tick(): void {
    const now = performance.now();
    this.#refresh();
    if (this.#tableStale) this.#drawTable();
    if (this.#ended) return;
    this.#tellSilence(now);
    const question = this.#feed.tick(now);
    if (question) this.#say(question);
  }

  #tellSilence(now: number): void {
    const seconds = this.#feed.silentFor(now);
    if (this.#feed.seq < 0) this.#state("waiting", seconds);
    else if (!this.#feed.live(now) && 1e3 * seconds >= SILENCE_MS) this.#state("silent", seconds);
  }

  async #draw(id: number): Promise<void> {
    this.#say({ kind: "picture", id }, await this.#charts.picture());
  }

  #say(message: ToKernel, buffer?: ArrayBuffer): void {
    try {
      this.#model.send({ ...message, page: this.#id }, undefined, buffer ? [buffer] : undefined);
    } catch {
      // the kernel is gone, and with it the other end: the page shows that nothing comes
    }
  }
}

export default {
  render(context: Context): Cleanup {
    const dashboard = new Dashboard(context);
    return () => dashboard.close();
  },
};
