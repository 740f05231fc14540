// What makes the portal's pages better where JavaScript runs; every page works without it.
"use strict";
(() => {
  const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));
  const lang = document.documentElement.lang;

  // Times in the reader's own zone.
  const format = new Intl.DateTimeFormat(lang, { dateStyle: "medium", timeStyle: "short" });
  const localTimes = (root) => all("time[datetime]", root).forEach((time) => {
    const at = new Date(time.dateTime);
    if (!Number.isNaN(at.getTime())) time.textContent = format.format(at);
  });
  localTimes(document);

  // A form is sent once.
  all("form[data-once]").forEach((form) => form.addEventListener("submit", (event) => {
    if (form.dataset.sent) return event.preventDefault();
    form.dataset.sent = "1";
    const button = form.querySelector("button[type=submit]");
    button.setAttribute("aria-disabled", "true");
    button.dataset.label = button.textContent;
    button.textContent = form.dataset.once;
  }));
  // Coming back by the browser's own button shows the page as it was left: it may be sent again.
  window.addEventListener("pageshow", (event) => event.persisted && all("form[data-sent]").forEach((form) => {
    delete form.dataset.sent;
    const button = form.querySelector("button[type=submit]");
    button.removeAttribute("aria-disabled");
    button.textContent = button.dataset.label;
  }));

  // Show and hide what is typed.
  all("[data-reveal]").forEach((button) => {
    const input = document.getElementById(button.dataset.reveal);
    const show = button.textContent;
    button.hidden = false;
    const set = (open) => {
      input.type = open ? "text" : "password";
      button.setAttribute("aria-pressed", String(open));
      button.textContent = open ? button.dataset.hide : show;
    };
    button.addEventListener("click", () => { set(input.type === "password"); input.focus(); });
    if (input.form) input.form.addEventListener("submit", () => set(false));
  });

  // How long a password still has to be.
  all("input[data-min]").forEach((input) => {
    const hint = document.getElementById(input.id + "-hint");
    const text = hint.textContent;
    input.addEventListener("input", () => {
      const missing = Number(input.dataset.min) - Array.from(input.value).length;
      if (!input.value) hint.textContent = text;
      else if (missing > 0) hint.textContent = input.dataset.more.replace("{n}", missing);
      else hint.textContent = input.dataset.enough;
    });
  });

  // A fault is shown until the field is changed.
  const fault = (input, text) => {
    const place = document.getElementById(input.id + "-error");
    if (place) place.textContent = text;
    if (text) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
  };
  all("input[aria-describedby]").forEach((input) => input.addEventListener("input", () => fault(input, "")));

  // Whether a name can be had, while it is typed.
  all("input[data-slug]").forEach((input) => {
    const address = document.querySelector("[data-address]");
    const fine = document.getElementById("slug-ok");
    let timer, asked;
    const ask = async () => {
      const name = input.value.trim();
      if (asked) asked.abort();
      asked = new AbortController();
      try {
        const answer = await fetch("/api/slugs/" + encodeURIComponent(name), { signal: asked.signal, headers: { accept: "application/json" } });
        if (!answer.ok) return void (fine.textContent = "");
        const verdict = await answer.json();
        if (input.value.trim() !== name) return;
        fine.textContent = verdict.available ? verdict.text : "";
        fault(input, verdict.available ? "" : verdict.text);
      } catch (error) {
        if (error.name !== "AbortError") fine.textContent = "";
      }
    };
    input.addEventListener("input", () => {
      const name = input.value.trim();
      address.textContent = input.dataset.slug.replace("{}", name || "…");
      clearTimeout(timer);
      fine.textContent = name ? input.dataset.checking : "";
      if (name) timer = setTimeout(ask, 300);
    });
  });

  // The part of a page that changes by itself.
  const live = document.getElementById("live");
  if (live && window.EventSource) {
    const say = document.getElementById("say");
    const lost = document.getElementById("lost");
    let shown = null, source = null, failures = 0;
    const take = (message) => {
      failures = 0;
      lost.textContent = "";
      const state = JSON.parse(message.data);
      if (state.go) return location.replace(state.go);
      if (state.html !== shown) {
        // What has the cursor and what stands open stays so.
        const focused = live.contains(document.activeElement) ? document.activeElement.closest("[id]") : null;
        const inSummary = focused && document.activeElement.localName === "summary";
        const open = all("details[open]", live).map((details) => details.id);
        live.innerHTML = state.html;
        shown = state.html;
        open.forEach((id) => { const details = document.getElementById(id); if (details) details.open = true; });
        const again = focused && document.getElementById(focused.id);
        if (again) (inSummary ? again.querySelector("summary") : again).focus();
        localTimes(live);
      }
      if (say.textContent !== state.say) say.textContent = state.say;
    };
    const connect = () => {
      if (source || document.hidden) return;
      source = new EventSource(live.dataset.live);
      source.addEventListener("live", take);
      source.addEventListener("error", () => {
        failures += 1;
        if (failures > 2) lost.textContent = lost.dataset.text;
        // A refusal ends an EventSource for good: a reload shows what it is, the sign-in page for one.
        if (source.readyState === EventSource.CLOSED) { source = null; setTimeout(failures > 5 ? () => location.reload() : connect, 2000); }
      });
    };
    // A browser has few connections for a site: a page that nobody sees keeps none.
    document.addEventListener("visibilitychange", () => {
      if (document.hidden && source) { source.close(); source = null; }
      connect();
    });
    window.addEventListener("pagehide", () => { if (source) { source.close(); source = null; } });
    window.addEventListener("pageshow", connect);
    connect();
  }
  all("[data-reload]").forEach((part) => setTimeout(() => location.reload(), Number(part.dataset.reload) * 1000));

  // The provider's form: fitting addresses and examples, and a test without leaving the page.
  const form = document.getElementById("provider-form");
  if (form) {
    const kinds = all("input[name=kind]", form);
    const base = form.elements.base_url, model = form.elements.model, key = form.elements.api_key;
    const finding = document.getElementById("finding");
    // An empty address stands for the provider's own, which is shown. Only what was put there is ever replaced.
    let put = "";
    const fit = () => {
      const kind = kinds.find((radio) => radio.checked);
      if (!base.value || base.value === put) base.value = put = kind.dataset.base;
      base.required = !kind.dataset.base;
      key.required = "key" in kind.dataset;
      const example = form.querySelector("[data-example]");
      example.textContent = kind.dataset.model || "…";
    };
    kinds.forEach((radio) => radio.addEventListener("change", () => { fit(); finding.textContent = ""; [base, model, key].forEach((input) => fault(input, "")); }));
    if (kinds.some((radio) => radio.checked)) fit();
    const notice = (good, parts) => {
      const box = document.createElement("div");
      box.className = "notice" + (good === null ? "" : good ? " good" : " bad");
      parts.filter(Boolean).forEach(([tag, text, quoted]) => {
        const line = document.createElement("p");
        const inner = document.createElement(tag);
        inner.textContent = text;
        line.append(inner);
        if (quoted) { const q = document.createElement("q"); q.textContent = quoted; line.append(" ", q); line.className = "small"; }
        box.append(line);
      });
      finding.replaceChildren(box);
      box.scrollIntoView({ block: "nearest" });
    };
    let busy = false;
    form.addEventListener("submit", async (event) => {
      if (busy) return event.preventDefault();
      busy = true;
      if (!event.submitter || event.submitter.value !== "test") return;
      event.preventDefault();
      [base, model, key].forEach((input) => fault(input, ""));
      notice(null, [["span", form.dataset.testing]]);
      const body = new URLSearchParams(new FormData(form));
      body.set("action", "test");
      try {
        const answer = await fetch("/onboarding", { method: "POST", body, headers: { accept: "application/json" } });
        if (answer.status === 401) return location.reload();
        const found = await answer.json();
        if (!found.title || found.text === undefined) throw new Error("no finding");
        notice(found.good, [["strong", found.title], ["span", found.text], found.said && ["span", document.getElementById("said-label").content.textContent, found.said]]);
        if (found.field) { const input = form.elements[found.field]; input.setAttribute("aria-invalid", "true"); input.focus(); }
      } catch {
        notice(false, [["span", form.dataset.again]]);
      } finally {
        busy = false;
      }
    });
    window.addEventListener("pageshow", () => { busy = false; });
  }
})();
