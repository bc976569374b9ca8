// Keeps the numbers of running campaigns fresh. Each element with data-watch names a JSON page.
//
// Asks each second (data-every says otherwise), seldom while the tab is hidden, ever less often
// while the server does not answer, and never again once the campaign is final.
"use strict";

(() => {
  const HIDDEN_SECONDS = 30;
  const LONGEST_PAUSE_SECONDS = 60;
  const RATE_WINDOW_SECONDS = 10;
  const language = document.documentElement.lang || undefined;
  const whole = new Intl.NumberFormat(language, { maximumFractionDigits: 0 });
  const relative = new Intl.RelativeTimeFormat(language);

  const inWords = (seconds) => {
    if (seconds < 90) return relative.format(Math.ceil(seconds), "second");
    if (seconds < 90 * 60) return relative.format(Math.round(seconds / 60), "minute");
    return relative.format(Math.round(seconds / 3600), "hour");
  };

  const speedInWords = (perSecond) =>
    perSecond > 0 && perSecond < 1
      ? `${whole.format(perSecond * 3600)} / h`
      : `${whole.format(perSecond)} / s`;

  class Watch {
    constructor(root) {
      this.root = root;
      this.every = Number(root.dataset.every || 1);
      this.failures = 0;
      this.polls = [];
      this.recent = 0;
      this.status = root.dataset.status;
      this.timer = null;
    }

    part(name) {
      return this.root.querySelector(`[data-part="${name}"]`);
    }

    write(name, text) {
      const part = this.part(name);
      if (part && part.textContent !== text) part.textContent = text;
    }

    start() {
      if (this.root.dataset.final === "true") return;
      document.addEventListener("visibilitychange", () => {
        if (!document.hidden && !this.over) this.ask();
      });
      this.ask();
    }

    later() {
      const rest = document.hidden ? HIDDEN_SECONDS : this.every;
      const seconds = Math.min(rest * 2 ** this.failures, Math.max(rest, LONGEST_PAUSE_SECONDS));
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.ask(), seconds * 1000);
    }

    // Only the server knows the time zone of the page's times: it is told the speed, and foretells.
    address() {
      const speed = this.recent > 0 ? `?per_second=${this.recent}` : "";
      return this.root.dataset.watch + speed;
    }

    async ask() {
      clearTimeout(this.timer);
      if (this.asking) return;
      this.asking = true;
      try {
        const answer = await fetch(this.address(), {
          headers: { Accept: "application/json" },
          credentials: "same-origin",
        });
        // Logged out: the answer is the login page, and asking on would never end.
        if (answer.redirected || answer.status === 403) {
          this.over = true;
          return;
        }
        if (!answer.ok) throw new Error(String(answer.status));
        const state = await answer.json();
        this.failures = 0;
        this.show(state);
        if (state.status !== this.status) {
          this.status = state.status;
          await this.refresh();
        }
        if (state.is_final) this.over = true;
      } catch {
        this.failures = Math.min(this.failures + 1, 6);
      } finally {
        this.asking = false;
      }
      if (!this.over) this.later();
    }

    show(state) {
      this.remember(state);
      this.write("percent", `${state.percent} %`);
      this.write("headline", state.headline);
      this.write("done", whole.format(state.done));
      this.write("total", whole.format(state.total));
      const amount = this.part("amount");
      if (amount) amount.hidden = !state.total;
      for (const [name, count] of Object.entries(state.counts)) this.showState(name, count, state);
      this.showSpeed(state);
      this.showWaiting(state.waiting);
    }

    showState(name, count, state) {
      const segment = this.root.querySelector(`[data-segment="${name}"]`);
      if (segment) segment.style.width = `${state.total ? (count * 100) / state.total : 0}%`;
      const tile = this.root.querySelector(`[data-state="${name}"]`);
      if (!tile) return;
      tile.querySelector("b").textContent = whole.format(count);
      tile.hidden = !count && !("always" in tile.dataset);
      const note = this.root.querySelector(`[data-note="${name}"]`);
      if (note) note.hidden = !count;
    }

    // The polls of the last ten seconds, and the one before them to measure from.
    remember(state) {
      this.polls.push(state);
      while (this.polls.length > 2 && state.at - this.polls[1].at > RATE_WINDOW_SECONDS) {
        this.polls.shift();
      }
    }

    recentSpeed() {
      const [first, last] = [this.polls[0], this.polls[this.polls.length - 1]];
      const seconds = last.at - first.at;
      return seconds > 0 ? Math.max(0, (last.done - first.done) / seconds) : 0;
    }

    showSpeed(state) {
      if (!this.part("speed")) return;
      this.recent = state.status === "sending" ? this.recentSpeed() : 0;
      const average = state.average_per_second;
      this.write("speed", this.recent > 0 ? speedInWords(this.recent) : "–");
      this.write("average", average > 0 ? speedInWords(average) : "–");
      const finish = state.finish;
      const when = finish ? `${finish.words} (${inWords(finish.at - state.at)})` : "–";
      this.write("finish", when);
    }

    showWaiting(sentences) {
      const note = this.part("waiting");
      if (!note) return;
      note.hidden = !sentences.length;
      this.write("waiting-text", sentences.join(" "));
    }

    // The state changed: buttons and timeline come fresh from the server, which alone knows them.
    async refresh() {
      const answer = await fetch(window.location.href, { credentials: "same-origin" });
      if (!answer.ok || answer.redirected) return;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const old of document.querySelectorAll("[data-refresh]")) {
        const fresh = page.querySelector(`[data-refresh="${old.dataset.refresh}"]`);
        if (fresh) old.replaceWith(document.adoptNode(fresh));
      }
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    for (const root of document.querySelectorAll("[data-watch]")) new Watch(root).start();
  });
})();
