// Elements, numbers and texts. Texts come into the page as text only: `textContent`, never markup.

const SVG = "http://www.w3.org/2000/svg";

function byId(id) {
  return document.getElementById(id);
}

/** An element with attributes and children; strings become text. */
function el(name, attributes, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same, of SVG. */
function svg(name, attributes, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Four significant digits, thousands apart, a minus that is one, a dash for what is not known. */
function format(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return grouped(value);
  const size = Math.abs(value);
  let text;
  if (size >= 1e6 || size < 1e-4) text = value.toExponential(2);
  else if (size >= 1000) return grouped(Math.round(value));
  else text = value.toFixed(Math.max(0, Math.min(6, digits - 1 - Math.floor(Math.log10(size)))));
  return text.replace("-", "−");
}

/** Three significant digits at most, without zeros at the end: for axes and levels. */
function brief(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1000) return grouped(Math.round(value));
  return (size && size < 1e-4 ? value.toExponential(1) : String(+value.toPrecision(3))).replace(
    "-",
    "−",
  );
}

/** A probability in per cent. */
function percent(value) {
  const text =
    value >= 0.9995 || value === 0
      ? (100 * value).toFixed(0)
      : value < 0.001
        ? (100 * value).toPrecision(1)
        : (100 * value).toFixed(1);
  return `${+text < 0.001 && value > 0 ? "<0.001" : text} %`;
}

/** A whole number with commas between thousands. */
function grouped(value) {
  return String(value)
    .replace(/\B(?=(\d{3})+$)/g, ",")
    .replace("-", "−");
}

/** Tokens of training, short: 16k, 1.5M. */
function formatTokens(value) {
  if (value >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  return value >= 1e4 ? `${+(value / 1e3).toPrecision(3)}k` : grouped(value);
}

/** Give an element a text or an attribute, where it has another one: what stays needs no layout. */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function setAttribute(element, name, value) {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

// The categories of `tokenenv.printable`: controls, marks of direction, separators. Joiners stay.
const ACTING = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u;
const LONGEST = 240;

/** A token's text so that all of it is seen and nothing of it acts. */
function visible(text, longest = LONGEST) {
  if (text === "") return "∅";
  const characters = Array.from(text.length > 4 * longest ? text.slice(0, 4 * longest) : text);
  const shown = characters.slice(0, longest).map(visibleCharacter).join("");
  const cut = characters.length > longest || text.length > 4 * longest;
  const rest = cut ? `… (${grouped(text.length)} characters)` : "";
  return (/^ +$/.test(shown) ? shown.replaceAll(" ", "␣") : shown) + rest;
}

function visibleCharacter(character) {
  if (character === "\n") return "⏎";
  if (character === "\t") return "⇥";
  if (character === "\u200c" || character === "\u200d" || !ACTING.test(character)) return character;
  const code = character.codePointAt(0);
  if (code < 256) return `\\x${code.toString(16).padStart(2, "0")}`;
  return code < 65536
    ? `\\u${code.toString(16).padStart(4, "0")}`
    : `\\U${code.toString(16).padStart(8, "0")}`;
}

/** Words for a screen reader: a token's text between quotes. */
function quoted(text) {
  return `“${visible(text, 60)}”`;
}
