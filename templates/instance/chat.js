// The workspace's chat. Whatever a model or a person wrote gets onto the page as text alone.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const main = $("main"), words = main.dataset, log = $("log"), input = $("message");
  const codes = JSON.parse(words.codes), refusals = JSON.parse(words.refusals);
  let chat = null;      // the chat shown, or null for one that is not begun yet
  let running = null;   // the AbortController of the answer under way
  let pending = null;   // a message that was not acknowledged: sent again under the same id

  // What is in the box, or was just sent from it, outlives the way through the portal and back, in this tab alone.
  const DRAFT = "draft";
  function signIn(sent) {
    const text = sent || input.value;
    try { if (text.trim()) sessionStorage.setItem(DRAFT, JSON.stringify({ chat, text })); } catch { /* no storage */ }
    location.href = "/auth/start?rd=" + encodeURIComponent(location.pathname) + location.hash;
  }
  function restore() {
    try {
      const draft = JSON.parse(sessionStorage.getItem(DRAFT));
      sessionStorage.removeItem(DRAFT);
      if (!draft) return;
      if (draft.chat && !location.hash) history.replaceState(null, "", "#" + draft.chat);
      if (!input.value) input.value = draft.text;
    } catch { /* no storage, or nothing in it that can be read */ }
  }
  const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");

  // What a refusal means, by its code: the sentence that comes with it is for programs, and English.
  async function refusal(response) {
    const { code = "" } = await response.json().catch(() => ({}));
    const unknown = response.status >= 500 ? words.offline : words.refused;
    const error = new Error(refusals[code] || unknown + (code && " (" + code + ")"));
    error.code = code;
    return error;
  }

  async function call(method, path, body) {
    const options = { method, headers: {} };
    if (body !== undefined) {
      options.headers["content-type"] = "application/json";
      options.body = JSON.stringify(body);
    }
    const response = await fetch(path, options);
    if (response.status === 401) { signIn(); throw new Error("signed out"); }
    if (!response.ok) throw await refusal(response);
    return response;
  }

  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const button = (text, action) => {
    const made = element("button", "link", text);
    made.type = "button";
    made.addEventListener("click", action);
    return made;
  };
  function trouble(text) {
    $("trouble").textContent = text || "";
    $("trouble").hidden = !text;
  }

  // Fenced code becomes code, `code` becomes code, everything else stays what it is: text.
  function render(into, text) {
    const parts = document.createDocumentFragment();
    text.split(/^```/m).forEach((part, index) => {
      if (index % 2) {
        const pre = element("pre"), cut = part.indexOf("\n");
        pre.tabIndex = 0;
        pre.append(element("code", "", cut < 0 ? "" : part.slice(cut + 1).replace(/\n$/, "")));
        parts.append(pre);
      } else if (part.trim()) {
        const piece = element("p", "piece");
        part.replace(/^\n+|\n+$/g, "").split(/`([^`\n]+)`/).forEach((inner, i) => {
          piece.append(i % 2 ? element("code", "", inner) : document.createTextNode(inner));
        });
        parts.append(piece);
      }
    });
    into.replaceChildren(parts);
  }

  function show(role, text) {
    const near = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    const item = element("article", "message " + role);
    const body = element("div", "text"), after = element("p", "after");
    item.append(element("p", "who", role === "user" ? words.you : words.model), body, after);
    log.append(item);
    // Pieces can come faster than a page can be laid out: a long answer is drawn some twenty times a second at most.
    let due = 0;
    const draw = () => {
      const follow = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
      due = 0;
      render(body, view.text);
      if (follow) log.scrollTop = log.scrollHeight;
    };
    const view = {
      text: "", item,
      set(value) {
        view.text = value;
        due = due || setTimeout(draw, 50);
      },
      after(...nodes) { after.replaceChildren(...nodes); },
    };
    view.text = text;
    render(body, text);
    if (near) log.scrollTop = log.scrollHeight;
    return view;
  }

  function ended(view, message, why, said) {
    const notes = [];
    if (why) notes.push(element("span", "error", why));
    if (said) notes.push(element("span", "muted", words.said + " “" + said + "”"));
    if (why) notes.push(button(words.retry, () => ask(message, view, true)));
    if (!why && view.text) notes.push(copyButton(view));
    view.after(...notes);
  }
  function copyButton(view) {
    const made = button(words.copy, async () => {
      try { await navigator.clipboard.writeText(view.text); made.textContent = words.copied; } catch { made.remove(); }
    });
    return made;
  }
  const reason = (message) => codes[message.error] || { partial: words.partial, interrupted: words.interrupted,
    failed: words.failed, streaming: words.running }[message.status] || "";

  async function list() {
    const { chats } = await (await call("GET", "/api/chats")).json();
    $("chat-list").replaceChildren(...chats.map((one) => {
      const item = element("li"), link = element("a", "", one.title || words.untitled);
      link.href = "#" + one.id;
      if (chat === one.id) link.setAttribute("aria-current", "page");
      const remove = element("button", "", "×");
      remove.type = "button";
      remove.setAttribute("aria-label", words.delete + ": " + (one.title || words.untitled));
      remove.addEventListener("click", async () => {
        if (!confirm(words.sure)) return;
        await call("DELETE", "/api/chats/" + one.id).catch((error) => trouble(error.message));
        if (chat === one.id) location.hash = "";
        list().catch(() => {});
      });
      item.append(link, remove);
      return item;
    }));
    $("no-chats").hidden = chats.length > 0;
  }

  async function open(id) {
    if (running) running.abort();
    chat = id || null;
    pending = null;
    log.replaceChildren();
    trouble("");
    $("chats").classList.remove("shown");
    $("show-chats").setAttribute("aria-expanded", "false");
    if (chat) {
      try {
        const { messages } = await (await call("GET", "/api/chats/" + encodeURIComponent(chat))).json();
        if (chat !== id) return;
        let asked = null;
        for (const message of messages) {
          const view = show(message.role, message.content);
          if (message.role === "user") asked = { id: message.id, content: message.content };
          else ended(view, asked, message.status === "done" ? "" : reason(message));
        }
        // Only the last answer can be made again: what came later was said knowing it.
        log.querySelectorAll(".message:not(:last-child) .after .link").forEach((old) => {
          if (old.textContent === words.retry) old.remove();
        });
        log.scrollTop = log.scrollHeight;
      } catch (error) {
        if (error.code === "chat_not_found") { location.hash = ""; return; }
        trouble(error.message);
      }
    }
    await list().catch(() => {});
    if (!input.disabled && matchMedia("(min-width: 48rem)").matches) input.focus();
  }

  function busy(controller) {
    running = controller;
    $("stop").hidden = !controller;
    $("send").hidden = !!controller;
    log.setAttribute("aria-busy", String(!!controller));
  }

  // Reads the events of one answer; resolves when the stream is over.
  async function events(response, on) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        let name = "message", data = "";
        for (const line of block.split("\n")) {
          if (line.startsWith("event:")) name = line.slice(6).trim();
          if (line.startsWith("data:")) data += line.slice(5).trim();
        }
        if (data) on(name, JSON.parse(data));
      }
    }
  }

  async function ask(message, view, again) {
    if (running) return;
    const controller = new AbortController(), here = chat;
    let acknowledged = again, over = false;
    trouble("");
    busy(controller);
    view.set("");
    view.after(element("span", "muted", words.thinking));
    try {
      const response = await fetch("/api/chats/" + here + "/messages", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ id: message.id, content: message.content, again }),
        signal: controller.signal,
      });
      if (response.status === 401) return signIn(acknowledged ? "" : message.content);
      if (!response.ok) throw await refusal(response);
      await events(response, (name, data) => {
        if (name === "accepted") {
          acknowledged = true;
          pending = null;
          list().catch(() => {});
        } else if (name === "delta") {
          if (!view.text) view.after();
          view.set(view.text + data.text);
        }
        else if (name === "done") { over = true; ended(view, message, ""); }
        else if (name === "error") { over = true; ended(view, message, data.message, data.provider_said); }
      });
      if (!over) ended(view, message, words.lost);
    } catch (error) {
      const stopped = controller.signal.aborted;
      if (acknowledged) ended(view, message, stopped ? words.partial : words.lost);
      else if (!stopped) {
        // Not kept by the server, as far as we know: the text goes back into the box, to be sent under the same id.
        view.item.previousElementSibling?.remove();
        view.item.remove();
        pending = message;
        input.value = message.content;
        trouble(error instanceof TypeError ? words.offline : error.message);
      }
    } finally {
      if (running === controller) busy(null);
    }
  }

  async function send() {
    const content = input.value;
    if (!content.trim() || running || input.disabled) return;
    try {
      if (!chat) {
        const begun = await (await call("POST", "/api/chats")).json();
        chat = begun.id;
        history.replaceState(null, "", "#" + chat);
      }
    } catch (error) {
      return trouble(error instanceof TypeError ? words.offline : error.message);
    }
    const message = pending && pending.content === content ? pending : { id: newId(), content };
    input.value = "";
    log.querySelectorAll(".after .link").forEach((old) => { if (old.textContent === words.retry) old.remove(); });
    show("user", content);
    const view = show("assistant", "");
    log.scrollTop = log.scrollHeight;
    await ask(message, view, false);
    if (!input.disabled) input.focus();
  }

  $("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  input.addEventListener("keydown", (event) => {
    // While an input method is composing, Enter belongs to it.
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  });
  $("stop").addEventListener("click", () => running && running.abort());
  $("new-chat").addEventListener("click", () => { if (location.hash) location.hash = ""; else open(null); });
  $("show-chats").addEventListener("click", () => {
    const shown = $("chats").classList.toggle("shown");
    $("show-chats").setAttribute("aria-expanded", String(shown));
  });
  window.addEventListener("hashchange", () => open(location.hash.slice(1)));
  restore();
  open(location.hash.slice(1));
})();
