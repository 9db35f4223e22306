// What the page does. Start here: the chat is `chat.js`, the API behind it `api.js`, and how both
// ends of it are sealed `sealing.js`.

import { Api } from "./api.js";
import { Chat } from "./chat.js";
import { copyButton } from "./text.js";

// The examples name this very peer, whatever its port is.
for (const place of document.querySelectorAll(".origin")) place.textContent = location.origin;
for (const example of document.querySelectorAll("figure.code")) {
  const code = example.querySelector("pre");
  code.tabIndex = 0; // so that the keyboard can scroll it
  example.append(copyButton(() => code.textContent, example.getAttribute("aria-label")));
}

new Chat(new Api()).start();
