// What a donor wrote, shown as text. Start at `TextView`.
//
// A stranger chose every character. So each one only ever becomes the text of a text node: there is
// no markup to escape, and the page's policy refuses the ways by which text becomes markup.

// What comes after so many parts is shown as one: a donor could send a million empty ones.
const MAX_PARTS = 500;
// Only what has one way to match: a pattern for all of the line would try a donor's thousand tildes
// in more ways than a browser lives for.
const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const LANGUAGE = /^[ \t]*(\S*)/;

/** Parts of a text: prose, and code between fences; an open fence goes to the end. Pure. */
export function partsOf(text) {
  const parts = [];
  let fence = "";
  let lines = [];
  let language = "";
  const flush = (kind) => {
    const content = lines.join("\n");
    if (kind === "code" || content.trim()) parts.push({ kind, content, language });
    lines = [];
  };
  for (const line of text.split("\n")) {
    const found = parts.length < MAX_PARTS ? fenceOf(line) : null;
    const isEnd = found && fence && found.marks.startsWith(fence) && !found.language;
    if (found && !fence) {
      flush("prose");
      fence = found.marks;
      language = found.language;
    } else if (isEnd) {
      flush("code");
      fence = language = "";
    } else {
      lines.push(line);
    }
  }
  flush(fence ? "code" : "prose");
  return parts.map((part) =>
    part.kind === "prose" ? { ...part, content: part.content.trim() } : part,
  );
}

/** The fence that a line is, and the language it names; null if it is none. */
function fenceOf(line) {
  const found = line.match(FENCE);
  if (!found) return null;
  const rest = line.slice(found[0].length);
  return rest.includes("`") ? null : { marks: found[1], language: rest.match(LANGUAGE)[1] };
}

/** An element that shows a growing text; what is there already stays, so it can be selected. */
export class TextView {
  constructor(element) {
    this.element = element;
    this.text = "";
    this.shown = [];
    this.isDue = false;
  }

  /** Add text; it is drawn with the next frame, however many pieces come before that. */
  append(text) {
    this.text += text;
    if (this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => this.draw());
  }

  /** Show everything now. */
  draw() {
    this.isDue = false;
    const parts = partsOf(this.text);
    parts.forEach((part, index) => this.drawPart(part, index));
    for (const { node } of this.shown.splice(parts.length)) node.remove();
    this.element.dispatchEvent(new Event("drawn", { bubbles: true }));
  }

  drawPart(part, index) {
    const old = this.shown[index];
    if (old?.kind === part.kind && old.language === part.language) {
      const { leaf } = old;
      if (part.content.startsWith(leaf.data)) leaf.appendData(part.content.slice(leaf.length));
      else leaf.data = part.content;
      return;
    }
    const leaf = document.createTextNode(part.content);
    const node = part.kind === "code" ? codeBlock(leaf, part.language) : prose(leaf);
    if (old) old.node.replaceWith(node);
    else this.element.append(node);
    this.shown[index] = { ...part, leaf, node };
  }
}

function prose(leaf) {
  const node = document.createElement("div");
  node.className = "prose";
  node.append(leaf);
  return node;
}

function codeBlock(leaf, language) {
  const node = document.createElement("figure");
  const code = document.createElement("pre");
  node.className = "code";
  code.tabIndex = 0; // so that the keyboard can scroll it
  code.append(leaf);
  node.append(code, copyButton(() => leaf.data, language));
  return node;
}

/** A button that copies what `textOf` returns when it is pressed. */
export function copyButton(textOf, label = "") {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.setAttribute("aria-label", label ? `Copy: ${label}` : "Copy the code");
  button.addEventListener("click", async () => {
    // Elsewhere than on this machine browsers give no clipboard to pages without HTTPS.
    const isCopied = await Promise.resolve(navigator.clipboard?.writeText(textOf())).then(
      () => Boolean(navigator.clipboard),
      () => false,
    );
    button.textContent = isCopied ? "Copied" : "Select it and press Ctrl+C";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  return button;
}
