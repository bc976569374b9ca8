// The pages of an import: the drop zone, the preview that follows the choices, and the progress.
"use strict";

(() => {
  // ------------------------------------------------------------------ upload: drop a file

  for (const zone of document.querySelectorAll("[data-drop]")) {
    const input = zone.querySelector("input");
    const name = zone.querySelector('[data-part="name"]');
    // While it is on its way down: Unfold's own listener at the input looks for a text field
    // that its widget has, and this zone has not.
    const chosen = (event) => {
      event.stopPropagation();
      name.textContent = input.files.length ? input.files[0].name : name.dataset.empty;
    };
    zone.addEventListener("change", chosen, { capture: true });
    for (const event of ["dragenter", "dragover"]) {
      zone.addEventListener(event, () => zone.classList.add("pp-drop-over"));
    }
    for (const event of ["dragleave", "drop"]) {
      zone.addEventListener(event, () => zone.classList.remove("pp-drop-over"));
    }
  }

  // ------------------------------------------------------------------ columns: a live preview

  for (const form of document.querySelectorAll("[data-columns]")) {
    let asked = 0;

    const refresh = async () => {
      const question = ++asked;
      const table = form.querySelector('[data-swap="preview"]');
      table.setAttribute("aria-busy", "true");
      const answer = await fetch(form.action, { method: "POST", body: new FormData(form) });
      if (question !== asked) return; // a later choice is on its way
      if (!answer.ok || answer.redirected) return location.reload();
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const inHand = document.activeElement && document.activeElement.name;
      for (const part of form.querySelectorAll("[data-swap]")) {
        part.innerHTML = page.querySelector(`[data-swap="${part.dataset.swap}"]`).innerHTML;
      }
      table.removeAttribute("aria-busy");
      if (inHand && form.elements[inHand]) form.elements[inHand].focus();
    };

    form.addEventListener("change", (event) => {
      if (event.target.name.startsWith("field-")) {
        const key = form.elements[event.target.name.replace("field-", "key-")];
        key.hidden = event.target.value !== "attribute:";
      }
      refresh().catch(() => form.submit());
    });
    const update = form.querySelector('[data-part="update"]');
    if (update) update.hidden = true; // choices show at once
  }

  // ------------------------------------------------------------------ progress: ask each second

  const EVERY_SECONDS = 1;
  const LONGEST_PAUSE_SECONDS = 30;

  for (const root of document.querySelectorAll("[data-import]")) {
    const language = document.documentElement.lang || undefined;
    const whole = new Intl.NumberFormat(language, { maximumFractionDigits: 0 });
    const part = (name) => root.querySelector(`[data-part="${name}"]`);
    const write = (element, text) => {
      if (element && element.textContent !== text) element.textContent = text;
    };
    const inWords = (seconds) => {
      const [value, unit] = seconds < 100 ? [seconds, "second"] : [seconds / 60, "minute"];
      return new Intl.NumberFormat(language, {
        style: "unit", unit, unitDisplay: "long", maximumFractionDigits: 0,
      }).format(Math.max(1, value));
    };
    let failures = 0;
    let before = null;

    const show = (state) => {
      const badge = document.querySelector('[data-part="status"]');
      write(badge, state.status_word);
      badge.className = `pp-badge pp-badge-${state.status}`;
      write(part("percent"), `${state.percent} %`);
      write(part("lines"), whole.format(state.lines));
      part("bar").style.width = `${state.percent}%`;
      part("bar").parentElement.setAttribute("aria-valuenow", state.percent);
      part("nobody").hidden = !state.nobody_there;
      for (const [name, count] of Object.entries(state.counts)) {
        write(root.querySelector(`[data-count="${name}"]`), whole.format(count));
      }
      const at = performance.now() / 1000;
      if (before && at > before.at && state.lines > before.lines) {
        const speed = (state.lines - before.lines) / (at - before.at);
        write(part("speed"), `${whole.format(speed)} / s`);
      }
      before = { at, lines: state.lines };
      if (state.seconds > 0) write(part("seconds"), inWords(state.seconds));
      if (state.seconds > 1 && state.percent > 1) {
        write(part("left"), inWords(Math.ceil((state.seconds * 100) / state.percent)));
      }
    };

    const ask = async () => {
      try {
        const answer = await fetch(root.dataset.import, { headers: { Accept: "application/json" } });
        if (answer.redirected || answer.status === 403 || answer.status === 404) {
          return location.reload(); // signed out, or the import is gone: the page says so
        }
        const state = await answer.json();
        failures = 0;
        show(state);
        if (!state.is_under_way) return location.reload(); // the report
      } catch {
        failures += 1;
      }
      const pause = Math.min(EVERY_SECONDS * 2 ** failures, LONGEST_PAUSE_SECONDS);
      return setTimeout(ask, pause * 1000);
    };
    ask();
  }
})();
