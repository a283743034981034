"use strict";
// The rows: number, id, status, stop reason or type of the error, tokens in, out and cached, text, characters cut off.
const rows = JSON.parse(document.getElementById("rows").textContent);
const PAGE = 50, FOLDED = 260;
const [tools, search, outcome, range, previous, next, body] = ["tools", "search", "outcome", "range", "previous", "next", "body"]
  .map((id) => document.getElementById(id));
let found = rows, first = 0;

const made = (name, className, text) => {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;  // never as HTML: ids and texts may be hostile
  return element;
};
const number = (value) => (value === null ? "–" : value.toLocaleString("en-US"));

const textCell = (text, cut) => {
  const cell = made("td", "text");
  const whole = cut ? `${text}… (${number(cut)} more characters)` : text;
  if (whole.length <= FOLDED) {
    cell.append(made("p", "", whole));
    return cell;
  }
  const details = made("details");
  details.append(made("summary", "", `${whole.slice(0, FOLDED).replace(/\s+/g, " ")}…`), made("pre", "", whole));
  cell.append(details);
  return cell;
};

const rowOf = ([place, id, status, what, tokensIn, tokensOut, cached, text, cut]) => {
  const row = made("tr"), state = made("td", "what"), name = made("td", "id");
  name.append(made("bdi", "", id));
  state.append(made("span", status === "succeeded" ? "dot ok" : "dot"), status, made("small", "", what));
  row.append(made("td", "num", number(place)), name, state, made("td", "num", number(tokensIn)),
    made("td", "num", number(tokensOut)), made("td", "num", number(cached)), textCell(text, cut));
  return row;
};

const show = () => {
  body.replaceChildren(...found.slice(first, first + PAGE).map(rowOf));
  range.textContent = found.length
    ? `${number(first + 1)}–${number(Math.min(first + PAGE, found.length))} of ${number(found.length)}` : "No result matches";
  previous.disabled = first === 0;
  next.disabled = first + PAGE >= found.length;
};
const filter = () => {
  const wanted = search.value.toLowerCase(), kind = outcome.value;
  found = rows.filter((row) => (!kind || row[2] === kind)
    && (!wanted || row[1].toLowerCase().includes(wanted) || row[3].toLowerCase().includes(wanted)
      || row[7].toLowerCase().includes(wanted)));
  first = 0;
  show();
};
let timer = 0;
search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(filter, 120); });
outcome.addEventListener("change", filter);
previous.addEventListener("click", () => { first -= PAGE; show(); });
next.addEventListener("click", () => { first += PAGE; show(); });
tools.hidden = false;
show();
