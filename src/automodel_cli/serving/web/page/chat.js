// The chat page. What people and models write is untrusted: it reaches the page as textContent and never as HTML.
"use strict";

const STORED = "automodel-chat";
const NUMBERS = ["temperature", "top_k", "top_p", "max_tokens", "seed"];
const $ = (id) => document.getElementById(id);

/** What is kept: messages as {role, content, error?, speed?}, settings as text by the ids of their fields. */
let state = { messages: [], settings: {} };
let model = { id: "", defaults: {} };
let running = null; // an AbortController while an answer comes

function load() {
  try {
    const stored = JSON.parse(localStorage.getItem(STORED));
    if (Array.isArray(stored.messages)) state = { messages: stored.messages, settings: stored.settings ?? {} };
  } catch { /* nothing stored, or nothing that can be read */ }
}

function save() {
  try {
    localStorage.setItem(STORED, JSON.stringify(state));
  } catch { /* full or forbidden: the page works without */ }
}

// ------------------------------------------------------------------------------------------------ the server

function headers() {
  const key = sessionStorage.getItem("key");
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function problemOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered with status ${response.status}`;
  }
}

async function meet() {
  try {
    const response = await fetch("/v1/models", { headers: headers() });
    if (!response.ok) throw new Error(await problemOf(response));
    [model] = (await response.json()).data;
    $("model").textContent = model.id;
    document.title = `${model.id} – chat`;
    const kind = model.mode === "chat" ? "chat model" : "base model: it continues your text";
    $("about").textContent = `${kind}, context ${model.context ?? "unlimited"} tokens`;
    showSettings();
  } catch (error) {
    tell(`Cannot reach the model: ${error.message}`);
  }
}

function body() {
  const asked = { messages: [], stream: true, stream_options: { include_usage: true }, truncation: "auto" };
  const { system } = state.settings;
  if (system) asked.messages.push({ role: "system", content: system });
  for (const { role, content, error } of state.messages) if (!error) asked.messages.push({ role, content });
  for (const name of NUMBERS) {
    const value = state.settings[name];
    if (value !== undefined && value !== "") asked[name] = Number(value);
  }
  return JSON.stringify(asked);
}

/** The events of a stream, parsed. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function answer() {
  const controller = new AbortController();
  running = controller;
  const message = { role: "assistant", content: "" };
  const started = performance.now();
  let tokens = 0, finish = null;
  const request = body();
  state.messages.push(message);
  show();
  tell("Answering …");
  const bubble = $("messages").lastElementChild.querySelector(".bubble");
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: headers(), body: request, signal: controller.signal,
    });
    if (!response.ok) throw new Error(await problemOf(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) tokens = event.usage.completion_tokens;
      const choice = event.choices[0];
      finish = choice?.finish_reason ?? finish;
      if (choice?.delta.content) {
        message.content += choice.delta.content;
        const atEnd = isAtEnd();
        bubble.textContent = message.content;
        if (atEnd) scrollToEnd();
      }
    }
    const seconds = (performance.now() - started) / 1000;
    message.speed = `${(tokens / seconds).toFixed(1)} tokens/s`;
    tell(`${tokens} token${tokens === 1 ? "" : "s"}${finish === "length" ? ", cut at the limit" : ""}`);
  } catch (error) {
    if (controller.signal.aborted) tell("Stopped.");
    else {
      message.error = error.message || "the connection was lost";
      tell("There was an error.");
    }
  }
  running = null;
  save();
  show();
}

// ------------------------------------------------------------------------------------------------ the page

function tell(text) {
  $("status").textContent = text;
}

function isAtEnd() {
  const main = document.querySelector("main");
  return main.scrollHeight - main.scrollTop - main.clientHeight < 60;
}

function scrollToEnd() {
  const main = document.querySelector("main");
  main.scrollTop = main.scrollHeight;
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function button(text, action) {
  const made = element("button", "", text);
  made.type = "button";
  made.disabled = running !== null;
  made.addEventListener("click", action);
  return made;
}

function show() {
  $("messages").replaceChildren(...state.messages.map(shown));
  $("messages").setAttribute("aria-busy", String(running !== null)); // a screen reader waits for the whole answer
  $("empty").hidden = state.messages.length > 0;
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
  for (const id of ["new", "export"]) $(id).disabled = running !== null || state.messages.length === 0;
  scrollToEnd();
}

function shown(message, number) {
  const isUser = message.role === "user";
  const item = element("li", isUser ? "user" : "assistant");
  const isLast = number === state.messages.length - 1;
  if (running && isLast) item.setAttribute("aria-busy", "true");
  item.append(element("div", "role", isUser ? "You" : "Model"), element("div", "bubble", message.content));
  if (message.error) {
    const problem = element("div", "error", message.error);
    problem.setAttribute("role", "alert");
    item.append(problem);
  }
  const actions = element("div", "actions");
  if (isUser) actions.append(button("Edit", () => edit(item, number)));
  else if (isLast) actions.append(button("Regenerate", () => again(number)));
  actions.append(button("Copy", () => copy(message.content)));
  if (message.speed) actions.append(element("span", "speed", message.speed));
  item.append(actions);
  return item;
}

function ask(text) {
  if (running !== null || text.trim() === "") return;
  state.messages.push({ role: "user", content: text });
  save();
  answer();
}

function again(number) {
  state.messages.length = number;
  answer();
  $("text").focus();
}

function edit(item, number) {
  const field = element("textarea");
  field.value = state.messages[number].content;
  field.rows = Math.min(10, field.value.split("\n").length + 1);
  field.setAttribute("aria-label", "Edit your message");
  const actions = element("div", "actions");
  const finish = () => {
    if (field.value.trim() === "") return;
    state.messages.length = number;
    ask(field.value);
    $("text").focus();
  };
  actions.append(button("Send again", finish), button("Cancel", show));
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      finish();
    } else if (event.key === "Escape") show();
  });
  item.replaceChildren(element("div", "role", "You"), field, actions);
  field.focus();
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    tell("Copied.");
  } catch {
    tell("The browser does not allow copying.");
  }
}

function download() {
  const messages = state.messages.filter(({ error }) => !error).map(({ role, content }) => ({ role, content }));
  if (state.settings.system) messages.unshift({ role: "system", content: state.settings.system });
  const text = JSON.stringify({ format: "automodel-conversation/1", model: model.id, messages }, null, 2) + "\n";
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "conversation.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

function showSettings() {
  for (const name of [...NUMBERS, "system"]) {
    $(name).value = state.settings[name] ?? "";
    if (name !== "seed" && name !== "system") $(name).placeholder = model.defaults[name] ?? "all";
  }
  $("key").value = sessionStorage.getItem("key") ?? "";
}

function grow() {
  const field = $("text");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

// ------------------------------------------------------------------------------------------------ what people do

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running !== null) return;
  const text = $("text").value;
  $("text").value = "";
  grow();
  ask(text);
});
$("text").addEventListener("input", grow);
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("form").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("settings").open) running?.abort();
});
$("stop").addEventListener("click", () => {
  running?.abort();
  $("text").focus();
});
$("new").addEventListener("click", () => {
  state.messages = [];
  save();
  show();
  tell("A new conversation.");
  $("text").focus();
});
$("export").addEventListener("click", download);
$("open-settings").addEventListener("click", () => $("settings").showModal());
for (const name of [...NUMBERS, "system"]) {
  $(name).addEventListener("change", () => {
    if ($(name).checkValidity()) state.settings[name] = $(name).value;
    save();
  });
}
$("key").addEventListener("change", () => {
  sessionStorage.setItem("key", $("key").value);
  meet();
});
$("defaults").addEventListener("click", () => {
  state.settings = {};
  save();
  showSettings();
});

load();
show();
meet();
