// The conversation browser. Owns what is shown of the rows in #data; all of it is set as text.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent), rows = data.rows;
  const list = $("list"), text = $("text"), search = $("search");
  const state = { row: 0, kind: "", token: -1, tokens: false, shown: rows.map((_, place) => place) };
  const format = new Intl.NumberFormat("en");

  const make = (tag, className, content) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (content !== undefined) element.textContent = content;
    return element;
  };

  // Of each row: where its pieces begin, and which of its tokens are targets.
  for (const row of rows) {
    row.starts = [];
    let start = 0;
    row.p.forEach((_, piece) => { row.starts.push(start); start += row.m[piece] ?? 1; });
    row.starts.push(start);
    row.targets = row.r.flatMap((length, run) => new Array(length).fill(run % 2 === 1));
    row.control = new Set(row.c);
    row.text = row.p.join("");
    row.lower = (row.s + "\n" + row.text).toLowerCase();
  }

  // -- the list of rows --------------------------------------------------------------------------

  const share = (row) => `${Math.round(100 * row.y / Math.max(1, row.t))}%`;
  const lastPart = (source) => source.slice(source.lastIndexOf("/") + 1);

  const entries = rows.map((row, place) => {
    const entry = make("li"), button = make("button");
    const name = make("bdi", "source", lastPart(row.s));
    button.append(name, make("span", "counts", `${format.format(row.t)} tokens, ${share(row)} targets`));
    button.append(make("span", "excerpt", row.text.slice(0, 400).replace(/<[^>\s]*>|\s+/g, " ").trim().slice(0, 90)));
    button.addEventListener("click", () => show(place));
    entry.append(button);
    list.append(entry);
    return entry;
  });

  const kinds = data.kinds.filter((kind) => rows.some((row) => row.k.includes(kind)));
  for (const kind of kinds.length > 1 ? ["", ...kinds] : []) {
    const count = rows.filter((row) => !kind || row.k.includes(kind)).length;
    const button = make("button", "", kind || "all");
    button.append(make("span", "number", String(count)));
    button.setAttribute("aria-pressed", String(!kind));
    button.addEventListener("click", () => {
      state.kind = kind;
      for (const other of $("kinds").children) other.setAttribute("aria-pressed", String(other === button));
      filter();
    });
    $("kinds").append(button);
  }

  function filter() {
    const wanted = search.value.toLowerCase();
    state.shown = [];
    rows.forEach((row, place) => {
      const fits = (!state.kind || row.k.includes(state.kind)) && row.lower.includes(wanted);
      entries[place].hidden = !fits;
      if (fits) state.shown.push(place);
    });
    $("row").hidden = !state.shown.length;
    $("none").hidden = state.shown.length > 0;
    say(`${state.shown.length} of ${rows.length} rows`);
    if (state.shown.length) show(state.shown.includes(state.row) ? state.row : state.shown[0], false);
  }

  const say = (what) => { $("said").textContent = what; };

  // -- one row -----------------------------------------------------------------------------------

  function show(place, spoken = true) {
    const row = rows[place];
    state.row = place;
    state.token = -1;
    entries.forEach((entry, other) => {
      if (other === place) entry.firstChild.setAttribute("aria-current", "true");
      else entry.firstChild.removeAttribute("aria-current");
    });
    const entry = entries[place];
    if (entry.offsetTop < list.scrollTop || entry.offsetTop + entry.offsetHeight > list.scrollTop + list.clientHeight) {
      list.scrollTop = entry.offsetTop - list.clientHeight / 3;
    }
    $("name").replaceChildren(make("bdi", "", row.s));
    $("facts").textContent = `row ${format.format(row.n)}${row.b === null ? "" : ` in bin ${format.format(row.b)}`} · ` +
      `${format.format(row.t)} tokens · ${format.format(row.y)} targets (${share(row)})` +
      (row.k.length ? ` · ${row.k.join(", ")}` : "");
    $("notes").replaceChildren(...row.w.map((note) => {
      const item = make("li", "warning");
      item.append(make("span", "sign", "!"), make("span", "", note));
      return item;
    }));
    const at = state.shown.indexOf(place);
    $("place").textContent = `${at + 1} / ${state.shown.length}`;
    $("previous").disabled = at <= 0;
    $("next").disabled = at >= state.shown.length - 1;
    drawStrip(row);
    write(row);
    inspect(-1);
    if (spoken) say(`${row.s}, ${row.t} tokens, ${row.y} targets`);
  }

  function drawStrip(row) {
    let start = 0;
    const total = row.targets.length || 1;
    $("strip").replaceChildren(...row.r.flatMap((length, run) => {
      const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      rect.setAttribute("x", 1000 * start / total);
      rect.setAttribute("width", 1000 * length / total);
      rect.setAttribute("height", 8);
      rect.setAttribute("class", run % 2 ? "strong" : "faint");
      start += length;
      return length ? [rect] : [];
    }));
  }

  // "all", "some" or "none" of a piece's tokens are targets.
  function trained(row, piece) {
    const own = row.targets.slice(row.starts[piece], row.starts[piece + 1]);
    return own.every(Boolean) ? "all" : own.some(Boolean) ? "some" : "none";
  }

  const spaced = (piece) => piece.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥").replaceAll(" ", "·");

  function write(row) {
    const parts = document.createDocumentFragment();
    let run = null, marked = null;
    const close = () => {
      if (run && marked) run.append(make("span", "sr", " (end of target) "));
    };
    row.p.forEach((content, piece) => {
      const kind = trained(row, piece), target = kind !== "none";
      if (row.gap && row.gap[0] === piece) {
        close();
        run = null;
        parts.append(make("span", "gap", `${format.format(row.gap[1])} tokens are left out here`));
      }
      if (!run || marked !== target) {
        close();
        run = make(target ? "mark" : "span", "run");
        marked = target;
        if (target) run.append(make("span", "sr", " (target) "));
        parts.append(run);
      }
      const control = row.control.has(piece);
      const shown = state.tokens && !control ? spaced(content) : content;
      if (state.tokens && content.startsWith(" ")) run.append(make("wbr"));
      const token = make("span", `tok ${kind}${control ? " chip" : ""}${piece % 2 ? " odd" : ""}`, shown);
      token.dataset.piece = piece;
      run.append(token);
    });
    close();
    text.replaceChildren(parts);
    text.classList.toggle("tokens", state.tokens);
    highlight();
  }

  function highlight() {
    if (!window.CSS || !CSS.highlights) return;
    CSS.highlights.delete("found");
    const wanted = search.value.toLowerCase();
    if (!wanted) return;
    // Text nodes of the pieces, back to back; lower case may be longer, so character by character.
    const nodes = [...text.querySelectorAll(".tok")].map((token) => token.firstChild).filter(Boolean);
    let joined = "";
    const places = [];
    for (const node of nodes) {
      for (let at = 0; at < node.data.length; at++) {
        const lower = node.data[at].toLowerCase();
        joined += lower;
        for (let i = 0; i < lower.length; i++) places.push([node, at]);
      }
    }
    const ranges = [];
    for (let at = joined.indexOf(wanted); at >= 0 && ranges.length < 500; at = joined.indexOf(wanted, at + wanted.length)) {
      const range = new Range(), last = places[at + wanted.length - 1];
      range.setStart(...places[at]);
      range.setEnd(last[0], last[1] + 1);
      ranges.push(range);
    }
    if (!ranges.length) return;
    CSS.highlights.set("found", new Highlight(...ranges));
    const box = ranges[0].getBoundingClientRect(), around = text.getBoundingClientRect();
    if (box.top < around.top || box.bottom > around.bottom) text.scrollTop += box.top - around.top - 40;
  }

  // -- one token ---------------------------------------------------------------------------------

  const tokenOf = (event) => event.target.closest?.("#text .tok");

  function inspect(piece) {
    const row = rows[state.row];
    text.querySelector(".at")?.classList.remove("at");
    const line = $("token");
    if (piece < 0) {
      line.replaceChildren(make("span", "hint", "Point at a token for its id, position and label."));
      return;
    }
    const token = text.querySelector(`[data-piece="${piece}"]`);
    token.classList.add("at");
    const from = row.starts[piece], to = row.starts[piece + 1];
    const ids = row.ids.slice(from, to), many = to - from > 1;
    const skipped = row.gap && piece >= row.gap[0] ? row.gap[1] : 0;
    const labels = ids.map((id, place) => (row.targets[from + place] ? id : -100));
    const position = many ? `${from + skipped}–${to - 1 + skipped}` : `${from + skipped}`;
    const kind = trained(row, piece);
    const said = { all: "target", some: "partly target", none: "masked" }[kind];
    const name = make("bdi", "piece", spaced(row.p[piece]).replaceAll("\n", ""));
    line.replaceChildren(
      name,
      make("span", "", `${many ? "ids" : "id"} ${ids.join(" ")}`),
      make("span", "", `position ${position}`),
      make("span", "", `label ${labels.join(" ")}`),
      make("span", `is ${kind}`, said + (row.control.has(piece) ? ", control token" : "")),
    );
  }

  function goTo(piece) {
    const row = rows[state.row];
    if (!row.p.length) return;
    state.token = Math.max(0, Math.min(piece, row.p.length - 1));
    inspect(state.token);
    text.querySelector(".at").scrollIntoView({ block: "nearest" });
    say($("token").textContent && [...$("token").children].map((part) => part.textContent).join(", "));
  }

  text.addEventListener("pointerover", (event) => {
    const token = tokenOf(event);
    if (token) inspect(Number(token.dataset.piece));
  });
  text.addEventListener("click", (event) => {
    const token = tokenOf(event);
    if (token) { state.token = Number(token.dataset.piece); inspect(state.token); }
  });
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: state.token + 1, ArrowLeft: state.token - 1, Home: 0, End: Infinity }[event.key];
    if (step === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    goTo(step);
  });

  // -- buttons and keys --------------------------------------------------------------------------

  function go(step) {
    const at = state.shown.indexOf(state.row) + step;
    if (at >= 0 && at < state.shown.length) show(state.shown[at]);
  }

  function view(tokens) {
    state.tokens = tokens;
    $("as-text").setAttribute("aria-pressed", String(!tokens));
    $("as-tokens").setAttribute("aria-pressed", String(tokens));
    if (rows.length) {
      write(rows[state.row]);
      if (state.token >= 0) inspect(state.token);
    }
    say(tokens ? "shown as tokens" : "shown as text");
  }

  $("previous").addEventListener("click", () => go(-1));
  $("next").addEventListener("click", () => go(1));
  $("as-text").addEventListener("click", () => view(false));
  $("as-tokens").addEventListener("click", () => view(true));
  search.addEventListener("input", filter);
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter") go(event.shiftKey ? -1 : 1);
    if (event.key === "Escape") { search.value = ""; filter(); search.blur(); }
  });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = state.shown.indexOf(entries.indexOf(event.target.closest("li"))) + step;
    if (at < 0 || at >= state.shown.length) return;
    show(state.shown[at]);
    entries[state.row].firstChild.focus();
  });
  document.addEventListener("keydown", (event) => {
    const active = document.activeElement;
    if (event.ctrlKey || event.metaKey || event.altKey || active === search) return;
    // One key alone is a command only where nothing else could want it.
    if (active && active !== document.body && !active.closest("#conversations")) return;
    const act = {
      j: () => go(1), n: () => go(1), k: () => go(-1), p: () => go(-1),
      t: () => view(!state.tokens), "/": () => { search.focus(); search.select(); },
    }[event.key.toLowerCase()];
    if (act) { event.preventDefault(); act(); }
  });

  filter();
})();
