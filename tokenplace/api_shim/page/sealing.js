// The encrypted API in the browser: what is sealed here only the peer opens, and the other way
// round. Start at `Sealer`.
//
// WebCrypto alone, no library. It has no PKCS#1 v1.5, with which whole answers are sealed, so only
// streamed ones can be opened here: their key comes wrapped with RSA-OAEP.

const RSA = { name: "RSA-OAEP", hash: "SHA-256" };
const NEW_RSA_KEY = { ...RSA, modulusLength: 2048, publicExponent: new Uint8Array([1, 0, 1]) };
const KEY_BYTES = 32; // AES-256
const IV_BYTES = 16; // a block of AES
const PEM_LABEL = "PUBLIC KEY";

/** Can this page seal at all? Browsers have WebCrypto only on pages of this machine or of HTTPS. */
export function canSeal() {
  return Boolean(globalThis.crypto?.subtle);
}

/** Seals requests to one peer, and opens its streamed answers. Its key pair dies with the page. */
export class Sealer {
  /** fetchPublicKey: a function that resolves to the peer's key as /public-key gives it. */
  constructor(fetchPublicKey) {
    this.fetchPublicKey = fetchPublicKey;
    this.own = null;
    this.peer = null;
  }

  /** Make the key pair, which takes a moment: before the first message is written. */
  prepare() {
    this.own ??= makeKeyPair();
    return this.own;
  }

  /** The peer was started anew and has another key. */
  forgetPeer() {
    this.peer = null;
  }

  /** The parts of a request's body that say `messages`, sealed. */
  async seal(messages) {
    const own = await this.prepare();
    this.peer ??= await importPeerKey(await this.fetchPublicKey());
    const key = crypto.getRandomValues(new Uint8Array(KEY_BYTES));
    const iv = crypto.getRandomValues(new Uint8Array(IV_BYTES));
    const aes = await crypto.subtle.importKey("raw", key, "AES-CBC", false, ["encrypt"]);
    const plaintext = new TextEncoder().encode(JSON.stringify(messages));
    const ciphertext = await crypto.subtle.encrypt({ name: "AES-CBC", iv }, aes, plaintext);
    // What is wrapped is the key's base64 text, not its bytes.
    const wrapped = new TextEncoder().encode(toBase64(key));
    const cipherkey = await crypto.subtle.encrypt(RSA, this.peer, wrapped);
    return {
      encrypted: true,
      client_public_key: own.publicText,
      messages: {
        ciphertext: toBase64(new Uint8Array(ciphertext)),
        cipherkey: toBase64(new Uint8Array(cipherkey)),
        iv: toBase64(iv),
      },
    };
  }

  /** A function that opens the events of one streamed answer, in their order. */
  opener() {
    let aes = null;
    return async ({ ciphertext, cipherkey, iv }) => {
      aes ??= await this.unwrap(cipherkey);
      const algorithm = { name: "AES-CBC", iv: fromBase64(iv) };
      const plaintext = await crypto.subtle.decrypt(algorithm, aes, fromBase64(ciphertext));
      return JSON.parse(new TextDecoder().decode(plaintext));
    };
  }

  async unwrap(cipherkey) {
    const { privateKey } = await this.prepare();
    const wrapped = await crypto.subtle.decrypt(RSA, privateKey, fromBase64(cipherkey));
    const key = fromBase64(new TextDecoder().decode(wrapped));
    return crypto.subtle.importKey("raw", key, "AES-CBC", false, ["decrypt"]);
  }
}

async function makeKeyPair() {
  // The private half cannot be taken out of the browser, not even by this page.
  const pair = await crypto.subtle.generateKey(NEW_RSA_KEY, false, ["encrypt", "decrypt"]);
  const der = new Uint8Array(await crypto.subtle.exportKey("spki", pair.publicKey));
  const lines = toBase64(der).match(/.{1,64}/g).join("\n");
  const pem = `-----BEGIN ${PEM_LABEL}-----\n${lines}\n-----END ${PEM_LABEL}-----\n`;
  return { privateKey: pair.privateKey, publicText: btoa(pem) };
}

function importPeerKey(text) {
  const der = fromBase64(atob(text).replace(/-----[A-Z ]+-----/g, "").replace(/\s/g, ""));
  return crypto.subtle.importKey("spki", der, RSA, false, ["encrypt"]);
}

function toBase64(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

function fromBase64(text) {
  return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
}
