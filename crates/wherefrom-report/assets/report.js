// Draws the query that the address names. Data lie in elements of JSON, or in a file beside the page that calls
// wherefromQuery. Texts enter the page as text nodes only.
"use strict";
(() => {
  const FOLD = 160, WINDOW = 100, FIRST = 10, RATIO = 2 / 3, QUOTES = 0.2, PAGE = 25, LINES = 50, FOUND = 40;
  const byId = (id) => document.getElementById(id);
  const study = JSON.parse(byId("data-study").textContent);
  const grid = study.grid;
  const unit = study.unit && study.unit.startsWith("nats") ? " nats" : "";
  // Of a projection nothing is measured in nats; what the query's tokens cost the model may be there beside it.
  const projected = (study.unit || "").startsWith("projection") || (study.sign || "").includes("the projection");
  // Rows may also be in the order of how far they lie along a direction, which is no influence.
  const influences = !(study.unit || "").startsWith("projection") || study.unit.includes("per added copy");
  const goal = projected ? "the projection" : "log p";
  const loaded = new Map();
  let mode = "update";
  let shown = null;
  const filter = { sign: "both", groups: new Map(), text: "", sort: "rank" };

  // ── Elements ──────────────────────────────────────────────────────────────────────────────────────────────────────
  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (name === "style") element.style.cssText = value; // an attribute is what the page's policy forbids
      else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  }
  const h = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
  const s = (name, attributes, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

  // ── Numbers ───────────────────────────────────────────────────────────────────────────────────────────────────────
  const minus = (text) => text.replace("-", "−");
  function significant(value, digits = 4) {
    if (value === 0) return "0";
    const decimals = digits - 1 - Math.floor(Math.log10(Math.abs(value)));
    const text = decimals >= -4 && decimals <= 8 ? value.toFixed(Math.max(decimals, 0)) : value.toExponential(digits - 1);
    return minus((value > 0 ? "+" : "") + text);
  }
  const plain = (value, digits = 3) => significant(value, digits).replace("+", "");
  const percent = (share) => (share >= 0.0995 ? (100 * share).toFixed(0) : plain(100 * share, 2)) + " %";
  const count = (value) => value.toLocaleString("en");
  const values = (scaled) => scaled.thousandths.map((part) => (part * scaled.largest) / 1000);
  const probability = (p, samples) => (p < 1 / samples ? `< ${1 / samples}` : p.toFixed(2));
  const label = (row) => (row.positive ? "+" : "−") + row.rank;
  const address = (query, row) => `#query-${query}/${row.positive ? "rank" : "opponent"}-${row.rank}`;
  const short = (text, length = 28) => { const line = text.replace(/\s+/g, " ").trim(); return line.length > length ? line.slice(0, length - 1) + "…" : line; };
  // A query in a window's title: the end of its prompt, and its completion.
  const titled = (view) => { const prompt = view.prompt.replace(/\s+/g, " "); return `${prompt.length > 30 ? "…" + prompt.slice(-29) : prompt} | ${short(view.completion)}`; };
  // What is measured: a contrast is the difference of two.
  const measure = (view) => (view.contrast && !projected ? `log p(${short(view.completion)}) − log p(${short(view.contrast)})` : goal);

  // ── Files and the clipboard ───────────────────────────────────────────────────────────────────────────────────────
  function save(name, type, text) {
    const link = h("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }
  const quoted = (cell) => { const text = cell === null || cell === undefined ? "" : String(cell); return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text; };
  // Two buttons that save a table: names of its columns, and rows in their order.
  const downloads = (name, table) => [["CSV", () => {
    const { columns, rows } = table();
    save(`${name}.csv`, "text/csv", [columns, ...rows].map((row) => row.map(quoted).join(",") + "\n").join(""));
  }], ["JSON", () => {
    const { columns, rows } = table();
    const objects = rows.map((row) => Object.fromEntries(columns.map((column, index) => [column, row[index] === undefined ? null : row[index]])));
    save(`${name}.json`, "application/json", JSON.stringify(objects, null, 1) + "\n");
  }]].map(([text, act]) => h("button", { onclick: act, title: `Save this table as ${text}` }, text));
  function copy(text, button) {
    const said = button.textContent;
    const done = () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = said; }, 1500); };
    const byHand = () => {
      const area = h("textarea", { class: "aside" }, text);
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      done();
    };
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, byHand); else byHand();
  }

  // ── Queries ───────────────────────────────────────────────────────────────────────────────────────────────────────
  window.wherefromQuery = (query, view) => loaded.set(query, view);
  function load(entry, then) {
    const inline = byId("data-query-" + entry.query);
    if (inline && !loaded.has(entry.query)) loaded.set(entry.query, JSON.parse(inline.textContent));
    if (loaded.has(entry.query)) return then(loaded.get(entry.query));
    const fail = () => { byId("query").replaceChildren(h("p", { class: "note" }, `${entry.file} is missing: keep it beside this page.`)); then(undefined); };
    document.head.append(h("script", { src: entry.file, onerror: fail, onload: () => then(loaded.get(entry.query)) }));
  }

  function route() {
    const [, number, sign, rank] = /^#query-(\d+)(?:\/(rank|opponent)-(\d+))?$/.exec(location.hash) || [];
    const entry = study.queries.find((entry) => String(entry.query) === number);
    const said = number === undefined ? location.hash.length > 1 && !byId(location.hash.slice(1)) && location.hash !== "#all" && `${location.hash}: there is no such place on this page.`
      : !entry && `There is no query ${number} on this page; it has ${study.queries.length === 1 ? "one" : study.queries.length}, listed here.`;
    tell(said);
    current(entry);
    byId("study").hidden = Boolean(entry);
    byId("query").hidden = !entry;
    if (!entry) {
      if (shown !== null) window.scrollTo(0, 0);
      shown = null;
      document.title = study.title;
      return;
    }
    load(entry, (view) => {
      if (!view) return;
      if (shown !== entry.query) {
        shown = entry.query;
        draw(view);
        window.scrollTo(0, 0);
      }
      if (rank && !jump((sign === "rank" ? "+" : "−") + rank)) tell(`This query has no ${sign === "rank" ? "proponent" : "opponent"} ${rank} on this page.`);
    });
  }
  // What an address asks for and the page does not have.
  function tell(text) {
    byId("lost").textContent = text || "";
    byId("lost").hidden = !text;
  }
  function jump(name) {
    const find = () => document.querySelector(`[data-sequence="${CSS.escape(name)}"]`);
    if (!find()) {
      Object.assign(filter, { sign: "both", text: "" });
      filter.groups.clear();
      again(true);
    }
    const card = find();
    if (!card) return false;
    document.querySelectorAll(".card.named").forEach((other) => other.classList.remove("named"));
    card.classList.add("named");
    card.scrollIntoView();
    card.querySelector(".text").focus({ preventScroll: true });
    return true;
  }

  function draw(view) {
    const at = study.queries.findIndex((entry) => entry.query === view.query);
    const go = (step) => {
      const other = study.queries[at + step];
      return h("button", { disabled: !other, onclick: () => { location.hash = `query-${other.query}`; } }, step < 0 ? "← Previous" : "Next →");
    };
    const grouped = groups(view), shares = layers(view);
    const sections = [["sequences", "Sequences"], grouped && ["groups", "Groups"], shares && ["layers", "Where in the model"], view.distribution && ["distribution", "Distribution"]].filter(Boolean);
    byId("query").replaceChildren(...[
      h("div", { class: "top" }, h("h2", { id: "query-title" }, h("bdi", {}, view.name)), h("span", { class: "buttons" }, go(-1), go(1))),
      view.asked.map((segment) => asked(segment, view)), measured(view),
      h("p", { class: "jump" }, sections.map(([id, text]) =>
        h("a", { href: `#query-${view.query}`, onclick: (event) => { event.preventDefault(); byId(id).scrollIntoView(); } }, text))),
      h("section", { id: "sequences", "aria-label": "Sequences" }, h("h3", {}, "Sequences"), bar(view), controls(view), h("div", { class: "signs" })),
      grouped && h("section", { id: "groups", "aria-label": "Influence by group" }, h("h3", {}, "Influence by group"), grouped),
      shares && h("section", { id: "layers", "aria-label": "Where in the model" }, h("h3", {}, "Where in the model"), shares),
      view.distribution && h("section", { id: "distribution", "aria-label": "Distribution" }, h("h3", {}, "Distribution over the corpus"), distribution(view.distribution)),
    ].flat(Infinity).filter(Boolean));
    byId("query").setAttribute("aria-labelledby", "query-title");
    document.title = `${titled(view)} · ${study.title}`;
    list(view);
  }

  // The query's own words: under every target its log-probability.
  function asked(sequence, view) {
    const targets = new Map(sequence.targets.map((position, index) => [position, index]));
    const all = words(sequence, sequence.targets[0]);
    const first = all.findIndex(({ tokens }) => tokens.some((token) => targets.has(token)));
    let marked = false;
    // White space where prompt and completion meet can be seen; what is copied has none of the signs.
    const edges = (text, place) => {
      const white = first > 0 && { [first - 1]: /\s+$/, [first]: /^\s+/ }[place]?.exec(text);
      if (!white) return text;
      marked = true;
      const signs = [...white[0]].map((character) => h("span", { class: "edge", "data-mark": { " ": "␣", "\n": "↵", "\t": "⇥" }[character] || "⍽" }, character));
      return place === first ? [signs, text.slice(white[0].length)] : [text.slice(0, white.index), signs];
    };
    const log_p = (tokens) => tokens.filter((token) => targets.has(token)).reduce((sum, token) => sum + sequence.log_p[targets.get(token)], 0);
    const parts = all.map((each, place) => {
      const { text, tokens, pieces } = each;
      if (!tokens.some((token) => targets.has(token))) return special(each) ? h("span", { class: "special" }, text) : edges(text, place);
      if (!sequence.log_p) return h("u", {}, edges(text, place));
      const sum = log_p(tokens);
      const by = pieces.length > 1 ? ": " + pieces.map((piece) => `${piece.text.trim() || "␣"} ${minus(log_p(piece.tokens).toFixed(2))}`).join(", ") : "";
      // A line may end at the white space before a word, but not between a word and its number.
      const space = text.trim() ? /^\s*/.exec(text)[0] : "";
      const [before, word] = place === first && space ? edges(text, place) : [space, text.slice(space.length)];
      return [before, h("ruby", { style: `--p:${Math.exp(sum / tokens.length).toFixed(3)}`, title: `log p = ${minus(sum.toFixed(3))} nats, p = ${plain(Math.exp(sum))}${by}` }, word, h("rt", {}, minus(sum.toFixed(2))))];
    });
    const n = sequence.targets.length;
    const tokens = `${n} token${n === 1 ? "" : "s"}`;
    const sum = sequence.log_p && sequence.log_p.reduce((sum, value) => sum + value, 0);
    const cost = sequence.log_p ? `log p = ${minus(sum.toFixed(2))} nats over ${tokens}, ${minus((sum / n).toFixed(2))} each; under each word its own.${projected ? " Measured is their projection." : ""}` : `${tokens} measured, underlined.`;
    const role = view.contrast ? (sequence.weight < 0 ? "Against" : "Completion") : sequence.weight === 1 ? null : `Counts ${plain(sequence.weight)}`;
    return [h("div", { class: "asked", dir: "auto", tabindex: "0", role: "group", "aria-label": role || "The query" }, parts),
      h("p", { class: "sum" }, role && h("b", {}, role), role && ": ", cost, marked && sequence === view.asked[0] && " ␣ is a space and ↵ a line break where prompt and completion meet.")];
  }

  // Of several segments what their sum comes to.
  function measured(view) {
    const segments = view.asked;
    if (projected || segments.length < 2 || !segments.every((segment) => segment.log_p)) return null;
    const sums = segments.map((segment) => segment.log_p.reduce((sum, value) => sum + value, 0));
    const sum = segments.reduce((sum, segment, index) => sum + segment.weight * sums[index], 0);
    const said = view.contrast ? `${measure(view)} = ${minus(sums[0].toFixed(2))} − (${minus(sums[1].toFixed(2))}) = ` : "Measured, each segment times its weight: ";
    return h("p", { class: "sum measured" }, said, h("b", {}, minus(sum.toFixed(2)), " nats"), ".");
  }

  // ── Sequences ─────────────────────────────────────────────────────────────────────────────────────────────────────
  // Tokens with a length of 0 begin a character that a later one ends: they go with it.
  function clusters(pieces) {
    const all = [];
    let tokens = [], at = 0;
    pieces.lengths.forEach((length, token) => {
      tokens.push(token);
      if (length > 0) {
        all.push({ text: pieces.text.slice(at, at + length), tokens });
        [tokens, at] = [[], at + length];
      }
    });
    return all;
  }

  // Pieces of one word together; never across the token `apart`.
  const segmenter = window.Intl && Intl.Segmenter ? new Intl.Segmenter(undefined, { granularity: "word" }) : null;
  function words(sequence, apart = -1) {
    const begins = segmenter && new Set(Array.from(segmenter.segment(sequence.text), (segment) => segment.index));
    const letters = (at) => /[\p{L}\p{M}\p{N}]{2}/u.test(sequence.text.slice(at - 1, at + 1));
    const all = [];
    let at = 0;
    for (const piece of clusters(sequence)) {
      const joins = at > 0 && !piece.tokens.includes(apart) && (begins ? !begins.has(at) : letters(at));
      if (joins) {
        const word = all[all.length - 1];
        word.text += piece.text;
        word.tokens.push(...piece.tokens);
        word.pieces.push(piece);
      } else all.push({ text: piece.text, tokens: [...piece.tokens], pieces: [piece] });
      at += piece.text.length;
    }
    return all;
  }

  // A token that stands for no text: <|bos|>, </s>.
  const special = (word) => word.pieces.length === 1 && /^<\|?\/?[\w-]+\|?>$/.test(word.text);

  function controls(view) {
    if (!view.rows.some((row) => row.by_token)) return null;
    const choice = (value, text) => h("label", {}, h("input", { type: "radio", name: "mode", value, checked: mode === value, onchange: () => { mode = value; recolour(); } }), " ", text);
    return h("fieldset", { class: "control" },
      h("legend", {}, "Colour"),
      choice("update", "by the token that is read"),
      choice("predicts", "by the token that is predicted"),
      h("span", { class: "key" }, "lowers", h("span", { class: "scale", role: "img", "aria-label": "orange lowers, blue raises" }), "raises"),
      h("span", { class: "note" }, "Scaled to each sequence's strongest word; point at a word for its pieces."));
  }
  let recolours = new Map();
  const recolour = () => recolours.forEach((again) => again());

  // ── Filters ───────────────────────────────────────────────────────────────────────────────────────────────────────
  const SORTS = {
    rank: ["strongest first", null],
    corpus: ["in order of the corpus", (left, right) => left.example - right.example],
    document: ["by document", (left, right) => left.doc.localeCompare(right.doc)],
    length: ["longest first", (left, right) => right.lengths.length - left.lengths.length],
  };
  let drawn = null;
  const again = (all) => { byId("sequences").querySelector(".filters")?.replaceWith(bar(drawn)); list(drawn, all); };
  function passes(row) {
    if (filter.sign !== "both" && row.positive !== (filter.sign === "plus")) return false;
    for (const [column, group] of filter.groups) if (row.groups && row.groups[column] !== group) return false;
    const needle = filter.text.toLowerCase();
    return !needle || row.text.toLowerCase().includes(needle) || row.doc.toLowerCase().includes(needle);
  }
  const filtered = () => filter.sign !== "both" || filter.groups.size > 0 || filter.text !== "";
  const visibleRows = (view) => {
    const [, order] = SORTS[filter.sort];
    const rows = view.rows.filter(passes);
    return order ? [...rows].sort(order) : rows;
  };

  function bar(view) {
    const change = (act) => (event) => { act(event.target.value); list(view); };
    const select = (name, options, value, act) => h("label", {}, h("span", {}, name), h("select", { onchange: change(act) }, options.map(([value, text]) => h("option", { value }, text))), null);
    const sign = select("Sign", [["both", "both"], ["plus", "proponents"], ["minus", "opponents"]], filter.sign, (value) => { filter.sign = value; });
    sign.querySelector("select").value = filter.sign;
    sign.querySelector("select").id = "filter-sign";
    const columns = (study.groupings || []).map((grouping, column) => {
      const there = [...new Set(view.rows.map((row) => row.groups?.[column]).filter((group) => group !== null && group !== undefined))];
      if (there.length < 2) { filter.groups.delete(column); return null; }
      if (!there.includes(filter.groups.get(column))) filter.groups.delete(column);
      const options = there.map((group) => [String(group), grouping.labels[group]]).sort(([, left], [, right]) => left.localeCompare(right));
      const choice = select(grouping.name, [["", "all"], ...options], "", (value) => { if (value === "") filter.groups.delete(column); else filter.groups.set(column, Number(value)); });
      choice.querySelector("select").value = filter.groups.has(column) ? String(filter.groups.get(column)) : "";
      choice.querySelector("select").dataset.column = grouping.name;
      return choice;
    });
    const sort = select("Sort", Object.entries(SORTS).map(([value, [text]]) => [value, text]), filter.sort, (value) => { filter.sort = value; });
    sort.querySelector("select").value = filter.sort;
    sort.querySelector("select").id = "filter-sort";
    const text = h("label", { class: "grow" }, h("span", {}, "Search"), h("input", { type: "search", id: "filter-text", value: filter.text, placeholder: "in these passages", autocomplete: "off", oninput: (event) => { filter.text = event.target.value; list(view); } }));
    return h("div", { class: "filters", role: "group", "aria-label": "Filter and sort" }, sign, columns, sort, text,
      h("output", { class: "count" }), h("span", { class: "buttons" }, downloads(`query-${view.query}`, () => table(view))));
  }

  // The rows that are shown, as a table.
  function table(view) {
    const columns = ["query", "query_id", "prompt", "completion", ...(view.contrast ? ["contrast"] : []), "sign", "rank", "example", "doc", "influence", "share", ...study.columns, "text"];
    const rows = visibleRows(view).map((row) => [view.query, view.id, view.prompt, view.completion, ...(view.contrast ? [view.contrast] : []),
      row.positive ? "positive" : "negative", row.rank, row.example, row.doc, row.influence, row.share, ...study.columns.map((_, index) => row.cells?.[index]), row.text]);
    return { columns, rows };
  }

  let cards = new Map();
  function list(view, all = false) {
    if (drawn !== view) [drawn, cards, recolours] = [view, new Map(), new Map()];
    const rows = visibleRows(view);
    const one = (row) => {
      if (!cards.has(row)) cards.set(row, card(view, row));
      return cards.get(row);
    };
    const section = (positive) => {
      if (filter.sign !== "both" && positive !== (filter.sign === "plus")) return null;
      const mine = rows.filter((row) => row.positive === positive);
      const first = all ? mine : mine.slice(0, FIRST);
      const more = h("button", { class: "more", onclick: () => { more.before(...mine.slice(FIRST).map(one)); more.remove(); } }, `Show all ${mine.length}`);
      return h("section", { class: "sign " + (positive ? "plus" : "minus") },
        h("h4", {}, positive ? "Proponents" : "Opponents", h("small", {}, influences ? ` one more copy ${positive ? "raises" : "lowers"} ${measure(view)}` : ` ${positive ? "with" : "against"} the direction`)),
        first.length ? first.map(one) : h("p", { class: "note" }, filtered() ? "None with this filter." : "None in the ranking."),
        mine.length > first.length ? more : null);
    };
    const signs = byId("sequences").querySelector(".signs");
    signs.replaceChildren(...[section(true), section(false)].filter(Boolean));
    signs.classList.toggle("one", filter.sign !== "both");
    byId("sequences").querySelector(".count").textContent = filtered() ? `${rows.length} of ${view.rows.length}` : `${view.rows.length} passages`;
  }

  function card(view, row) {
    const near = row.near && view.rows[row.near.place];
    const badges = [
      row.ratio !== null && row.ratio > RATIO && h("span", { class: "badge", title: `‖a‖₂/‖a‖₁ = ${plain(row.ratio)} over the shares by token, above 2/3: take it with caution` }, "rests on one or two tokens"),
      near && h("span", { class: "badge", title: `Jaccard similarity of their runs of 3 tokens: ${row.near.jaccard.toFixed(2)}` }, "near-duplicate of ", h("a", { href: address(view.query, near) }, label(near))),
      row.quotes !== null && row.quotes >= QUOTES && h("span", { class: "badge", title: "share of the query's runs of 3 tokens that stand in this passage too" }, `quotes ${percent(row.quotes)} of the query`),
    ].filter(Boolean);
    const cells = (row.cells || []).map((cell, index) => cell !== null && h("span", { class: "cell" }, h("i", {}, study.columns[index]), " ", h("bdi", {}, String(cell)))).filter(Boolean);
    const link = h("button", { class: "quiet link", title: "Copy a link to this passage", onclick: () => copy(location.href.split("#")[0] + address(view.query, row), link) }, "Copy link");
    const words = h("button", { class: "quiet words", title: "Copy the text of this passage", onclick: () => copy(row.text, words) }, "Copy text");
    const spaced = (all) => all.flatMap((part) => [part, " "]);
    const tokens = row.lengths.length;
    return h("article", { class: "card", "data-sequence": label(row), "data-example": row.example },
      h("header", {}, h("div", {}, spaced([
        h("a", { class: "rank", href: address(view.query, row), title: "A link to this passage" }, label(row)),
        h("span", { class: "influence", title: study.unit || "" }, significant(row.influence) + unit),
        row.share !== null && h("span", { class: "share", title: `share of all ${row.positive ? "positive" : "negative"} influence on this query` }, `${percent(row.share)} of all ${row.positive ? "positive" : "negative"}`),
        h("bdi", { class: "doc" }, row.doc), ...badges].filter(Boolean))), " ", h("span", { class: "buttons" }, link, " ", words)),
      cells.length ? h("p", { class: "cells" }, spaced(cells)) : null,
      text(row),
      modules(row, `example ${row.example} · ${tokens} tokens`));
  }

  function text(row) {
    const all = words(row);
    const shares = row.by_token && values(row.by_token);
    const starts = new Map(row.docs);
    const out = h("output", { class: "readout" });
    const box = h("p", { class: "text", dir: "auto", tabindex: "0", role: "group", "aria-label": `Text of sequence ${label(row)}; arrow keys go from word to word` });
    let range = shares && row.lengths.length > FOLD ? strongest(shares, all) : [0, all.length];
    let spans = [], here = -1;

    // Where a token's share is shown: at itself, or at the next token, which it predicts.
    const share = ({ tokens }) => tokens.reduce((sum, token) => sum + (mode === "update" ? shares[token] : token > 0 ? shares[token - 1] : 0), 0);
    const said = (piece) => piece.text.replace(/\n/g, "⏎").trim() || "␣";
    function say(index) {
      if (!shares) return;
      const top = index < 0;
      if (top) all.forEach((word, other) => { if (index < 0 || Math.abs(share(word)) > Math.abs(share(all[index]))) index = other; });
      const { tokens, pieces } = all[index], value = share(all[index]);
      const [from, to] = [tokens[0], tokens[tokens.length - 1]];
      const where = from === to ? `token ${from}` : `tokens ${from} to ${to}`;
      const each = pieces.length > 1 ? ": " + pieces.map((piece) => `${said(piece)} ${significant(share(piece), 3)}`).join(" · ") : "";
      out.textContent = `${top ? "strongest: " : ""}“${said(all[index])}” ${significant(value, 3)}${unit}` + (top ? "" : `, ${percent(Math.abs(value / row.influence))} of the influence, ${where}${each}`);
    }
    function move(index) {
      if (here >= 0) spans[here]?.classList.remove("here");
      here = Math.max(range[0], Math.min(range[1] - 1, index));
      spans[here]?.classList.add("here");
      say(here);
    }
    function unfold(from, to) {
      range = [from, to];
      render();
    }
    function render() {
      spans = [];
      const largest = shares ? Math.max(...all.map((word) => Math.abs(share(word))), 1e-30) : 1;
      const tint = (part) => {
        const value = share(part), strength = Math.min(0.8, (0.8 * Math.abs(value)) / largest);
        return strength < 0.02 ? "transparent" : `rgb(var(--${value < 0 ? "negative" : "positive"}) / ${strength.toFixed(2)})`;
      };
      const parts = all.slice(...range).map((word, offset) => {
        // Pieces have the colour of their word until one points at it, and the space before a word has none: a line may end there.
        const space = word.text.trim() ? /^\s*/.exec(word.text)[0].length : 0;
        let at = 0;
        const pieces = shares ? word.pieces.map((piece) => {
          const before = Math.max(0, Math.min(piece.text.length, space - at));
          at += piece.text.length;
          return [piece.text.slice(0, before), before < piece.text.length && h("i", { style: `--w:${tint(word)};--p:${tint(piece)}` }, piece.text.slice(before))];
        }) : word.text;
        const span = h("span", { class: special(word) ? "w special" : "w" }, pieces);
        spans[range[0] + offset] = span;
        const begins = word.tokens.map((token) => starts.get(token)).find(Boolean);
        return begins ? [h("span", { class: "start" }, h("bdi", {}, begins)), span] : span;
      });
      const fold = (tokens, from, to) => tokens > 0 && h("button", { class: "fold", onclick: () => unfold(from, to) }, `… ${tokens} more tokens`);
      const counted = (from, to) => all.slice(from, to).reduce((sum, word) => sum + word.tokens.length, 0);
      box.replaceChildren(...[fold(counted(0, range[0]), 0, range[1]), ...parts, fold(counted(range[1], all.length), range[0], all.length)].flat().filter(Boolean));
      say(-1);
    }
    box.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step && shares && event.target === box) { event.preventDefault(); move(here < 0 ? range[0] : here + step); }
    });
    box.addEventListener("pointerover", (event) => {
      const index = spans.indexOf(event.target.closest(".text > span"));
      if (index >= 0) say(index);
    });
    box.addEventListener("pointerleave", () => say(here));
    box.addEventListener("blur", () => { spans[here]?.classList.remove("here"); here = -1; say(-1); });
    render();
    if (shares) recolours.set(row, () => { here = -1; render(); });
    return [box, out];
  }

  // ── Groups ────────────────────────────────────────────────────────────────────────────────────────────────────────
  // The column with the fewest groups comes first: what has many is looked at when one wants to.
  const few = (study.groupings || []).map((grouping) => grouping.labels.length);
  let column = few.indexOf(Math.min(...few));
  function groups(view) {
    if (!view.groups || !view.groups.length) return null;
    const holder = h("div", {});
    const render = () => holder.replaceChildren(choice, ...group(view, column));
    const choice = view.groups.length > 1
      ? h("label", { class: "by" }, "by ", h("select", { onchange: (event) => { column = Number(event.target.value); render(); } }, study.groupings.map((grouping, index) => h("option", { value: index, selected: index === column }, grouping.name))))
      : h("p", { class: "by" }, `by ${study.groupings[column].name}`);
    render();
    return holder;
  }

  function group(view, column) {
    const found = view.groups[column], grouping = study.groupings[column];
    const all = grouping.sizes.reduce((sum, size) => sum + size, 0);
    const total = found.total[0] - found.total[1];
    const lines = found.groups.map(([group, positive, negative]) => ({ name: grouping.labels[group], rows: grouping.sizes[group], positive, negative, group }));
    if (found.rest) lines.push({ name: `${count(found.rest[0])} more`, rows: found.rest[1], positive: found.rest[2], negative: found.rest[3], group: null });
    const largest = Math.max(...lines.map((line) => Math.max(line.positive, -line.negative)), 1e-30);
    const rows = lines.map((line) => {
      const size = (line.positive - line.negative) / total, share = line.rows / all;
      const width = (value) => (96 * Math.abs(value)) / largest;
      const bars = s("svg", { viewBox: "0 0 200 14", width: 200, height: 14, role: "img", "aria-label": `${significant(line.positive, 3)} and ${significant(line.negative, 3)}` },
        s("rect", { class: "negative", x: 100 - width(line.negative), y: 2, width: width(line.negative), height: 10 }),
        s("rect", { class: "positive", x: 100, y: 2, width: width(line.positive), height: 10 }),
        s("path", { class: "axis", d: "M100 0V14" }));
      const pick = line.group === null || !view.rows.some((row) => row.groups[column] === line.group) ? h("bdi", {}, line.name)
        : h("button", { class: "quiet", title: "Show the passages of this group", onclick: () => { filter.groups.set(column, line.group); again(); byId("sequences").scrollIntoView(); } }, h("bdi", {}, line.name));
      const cells = [count(line.rows), percent(share), significant(line.positive + line.negative), significant(line.positive - line.negative).replace("+", ""), percent(size), "× " + plain(size / share, 2)];
      return h("tr", {}, h("th", { scope: "row" }, pick), cells.slice(0, 2).map((cell) => h("td", { class: "number" }, cell)), h("td", { class: "bars" }, bars), cells.slice(2).map((cell) => h("td", { class: "number" }, cell)));
    });
    const names = [["Group"], ["Rows"], ["of all rows", "share of the rows"], ["Opponents · proponents", "sum of the influences below and above 0"], ["Influence", "sum, signs kept"], ["Absolute", "sum of the sizes"], ["of all influence", "share of the sum of the sizes"], ["for its size", "share of the influence over share of the rows: above 1 the group has more than its size would give it"]];
    const heads = names.map(([name, title], index) => h("th", { scope: "col", class: index === 0 || index === 3 ? null : "number" }, title ? h("abbr", { title }, name) : name));
    return [h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Influence by group, table" }, h("table", { class: "groups" }, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, rows))),
      h("p", { class: "buttons" }, downloads(`query-${view.query}-by-${grouping.name}`, () => ({
        columns: [grouping.name, "rows", "rows_share", "positive", "negative", "influence", "absolute", "absolute_share", "over_rows"],
        rows: lines.map(({ name, rows, positive, negative }) => [name, rows, rows / all, positive, negative, positive + negative, positive - negative, (positive - negative) / total, ((positive - negative) / total) / (rows / all)]),
      })))];
  }

  // The window of WINDOW clusters that holds most of the sizes.
  function strongest(shares, all) {
    const sizes = all.map((cluster) => cluster.tokens.reduce((sum, token) => sum + Math.abs(shares[token]), 0));
    let sum = sizes.slice(0, WINDOW).reduce((left, right) => left + right, 0), best = sum, from = 0;
    for (let end = WINDOW; end < sizes.length; end++) {
      sum += sizes[end] - sizes[end - WINDOW];
      if (sum > best) [best, from] = [sum, end - WINDOW + 1];
    }
    return [from, Math.min(all.length, from + WINDOW)];
  }

  // ── Where in the model ────────────────────────────────────────────────────────────────────────────────────────────
  function modules(row, about) {
    if (!row.by_module) return h("div", { class: "foot" }, about);
    const details = h("details", { class: "foot" }, h("summary", {}, about + " · by module"));
    details.addEventListener("toggle", () => {
      if (details.open && details.childElementCount === 1) details.append(bars(values(row.by_module), `Shares of sequence ${label(row)} by module`));
    });
    return details;
  }

  // So many pixels for a picture, or as many as there are.
  const room = (most) => Math.min(most, byId("main").clientWidth - 32);

  // A bar for every module: layers down, maps across.
  function bars(shares, name) {
    const left = 46, wide = Math.max(56, Math.min(150, (room(640) - left) / grid.maps.length)), high = 14, head = 20;
    const largest = Math.max(...shares.map(Math.abs), 1e-30);
    const [width, height] = [left + wide * grid.maps.length, head + high * grid.layers.length];
    const best = shares.reduce((best, share, index) => (Math.abs(share) > Math.abs(shares[best]) ? index : best), 0);
    const strongest = `${name}. Strongest: ${grid.modules[best]}, ${significant(shares[best], 3)}${unit}.`;
    return h("figure", {}, s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": strongest },
      grid.maps.map((map, column) => s("text", { x: left + wide * (column + 0.5), y: 12, "text-anchor": "middle" }, map.split(".").at(-1))),
      grid.layers.map((layer, row) => s("text", { x: left - 6, y: head + high * row + 11, "text-anchor": "end" }, layer)),
      grid.maps.map((_, column) => s("path", { class: "grid", d: `M${left + wide * (column + 0.5)} ${head}V${height}` })),
      shares.map((share, index) => {
        const [layer, map] = grid.places[index];
        const [size, middle] = [((wide / 2 - 4) * Math.abs(share)) / largest, left + wide * (map + 0.5)];
        return s("rect", { class: share < 0 ? "negative" : "positive", x: share < 0 ? middle - size : middle, y: head + high * layer + 2, width: size, height: high - 4 },
          s("title", {}, `${grid.modules[index]}: ${significant(share, 3)}${unit}`));
      })), h("figcaption", {}, strongest));
  }

  const byLayer = (shares) => shares.reduce((sums, share, index) => { sums[grid.places[index][0]] += share; return sums; }, grid.layers.map(() => 0));

  function layers(view) {
    const rows = view.rows.filter((row) => row.by_module);
    if (!rows.length) return null;
    const proponents = rows.filter((row) => row.positive);
    const sums = grid.modules.map(() => 0);
    proponents.forEach((row) => values(row.by_module).forEach((share, index) => { sums[index] += share; }));
    return [heatmap(view, rows), h("div", { class: "plots" },
      proponents.length ? bars(sums, `Sum over the ${proponents.length} proponents shown, by module`) : null,
      view.profile ? profile(view.profile, study.profile) : null)];
  }

  function heatmap(view, rows) {
    const sorted = [...rows].filter((row) => row.centre !== null).sort((left, right) => left.centre - right.centre);
    const left = 46, cell = Math.max(3, Math.min(20, (room(908) - left - 2) / sorted.length)), high = Math.max(9, Math.min(22, 300 / grid.layers.length));
    const [width, height] = [left + cell * sorted.length + 2, high * grid.layers.length + 26];
    const y = (layer) => high * (grid.layers.length - 1 - layer);
    const columns = sorted.map((row) => {
      const sums = byLayer(values(row.by_module)), size = sums.reduce((sum, share) => sum + Math.abs(share), 0);
      return sums.map((share) => share / size);
    });
    const largest = Math.max(...columns.flat().map(Math.abs));
    const out = h("output", { class: "readout" });
    const cursor = s("rect", { class: "cursor", y: 0, width: cell, height: high * grid.layers.length, visibility: "hidden" });
    let here = -1;
    function move(column) {
      here = Math.max(0, Math.min(sorted.length - 1, column));
      cursor.setAttribute("x", left + cell * here);
      cursor.setAttribute("visibility", "visible");
      const top = columns[here].reduce((best, share, layer) => (Math.abs(share) > Math.abs(columns[here][best]) ? layer : best), 0);
      out.textContent = `${label(sorted[here])} ${sorted[here].doc}: centre at layer ${plain(sorted[here].centre)}, most in layer ${grid.layers[top]} (${percent(Math.abs(columns[here][top]))})`;
    }
    const at = (event) => {
      const box = figure.getBoundingClientRect();
      return Math.floor((((event.clientX - box.left) * width) / box.width - left) / cell);
    };
    const name = `Heat map of ${sorted.length} sequences and ${grid.layers.length} layers; arrow keys go from sequence to sequence, Enter shows it`;
    const figure = s("svg", {
      viewBox: `0 0 ${width} ${height}`, width, height, role: "application", tabindex: "0", "aria-label": name,
      onpointermove: (event) => { if (at(event) >= 0) move(at(event)); },
      onclick: (event) => { if (at(event) >= 0) { move(at(event)); jump(label(sorted[here])); } },
      onkeydown: (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (step) { event.preventDefault(); move(here + step); }
        if (event.key === "Enter" && here >= 0) jump(label(sorted[here]));
      },
    },
    grid.layers.map((layer, index) => (high >= 12 || index % 5 === 0) && s("text", { x: left - 6, y: y(index) + high / 2 + 4, "text-anchor": "end" }, layer)),
    columns.map((shares, column) => shares.map((share, layer) => s("rect", { class: share < 0 ? "negative" : "positive", x: left + cell * column, y: y(layer), width: cell - 0.5, height: high - 0.5, "fill-opacity": (Math.abs(share) / largest).toFixed(3) }))),
    sorted.map((row, column) => s("rect", { class: row.positive ? "positive" : "negative", x: left + cell * column, y: high * grid.layers.length + 3, width: cell - 0.5, height: 4 })),
    s("text", { x: left, y: height - 3 }, "influence in the lower layers"),
    s("text", { x: width - 2, y: height - 3, "text-anchor": "end" }, sorted.length * cell > 330 ? "in the upper layers" : ""),
    cursor);
    return h("figure", {}, figure, out, h("figcaption", {}, `Layers (up) and sequences (across), sorted by the layer around which their influence lies. Blue raises ${goal}, orange lowers it; each column is scaled to the sequence's own sum of sizes. The line below tells proponents from opponents.`));
  }

  // Bars by layer; a mark for the average over all queries.
  function profile(shares, average) {
    const left = 40, high = 150, bar = Math.max(5, Math.min(56, (room(564) - left - 4) / shares.length));
    const largest = Math.max(...shares, ...(average || []));
    const [width, y] = [left + bar * shares.length + 4, (share) => 8 + high * (1 - share / largest)];
    const best = shares.indexOf(Math.max(...shares));
    const name = `Share of each layer, mean over the proponents; most in layer ${grid.layers[best]} (${percent(shares[best])}).`;
    return h("figure", {}, s("svg", { viewBox: `0 0 ${width} ${high + 30}`, width, height: high + 30, role: "img", "aria-label": name },
      [0, 0.5, 1].map((part) => [s("path", { class: "grid", d: `M${left} ${y(part * largest)}H${width}` }), s("text", { x: left - 5, y: y(part * largest) + 4, "text-anchor": "end" }, percent(part * largest))]),
      shares.map((share, layer) => s("rect", { class: "positive", x: left + bar * layer + 2, y: y(share), width: Math.max(2, bar - 4), height: y(0) - y(share) }, s("title", {}, `layer ${grid.layers[layer]}: ${percent(share)}`))),
      average && average.map((share, layer) => s("path", { class: "axis", d: `M${left + bar * layer} ${y(share)}h${bar}` })),
      grid.layers.map((layer, index) => (bar >= 18 || index % 5 === 0) && s("text", { x: left + bar * (index + 0.5), y: high + 24, "text-anchor": "middle" }, layer))),
    h("figcaption", {}, name + (average ? " The lines are the average over all queries." : "")));
  }

  // ── Distribution ──────────────────────────────────────────────────────────────────────────────────────────────────
  const powers = (low, high) => Array.from({ length: Math.max(0, Math.floor(high) - Math.ceil(low) + 1) }, (_, index) => Math.ceil(low) + index);
  const superscript = (power) => "10" + String(power).replace("-", "⁻").replace(/\d/g, (digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]);

  // Axes in log10 with their labels; `draw` gets the places of x and y.
  function logarithmic([x0, x1], [y0, y1], xName, yName, name, draw) {
    const [left, top, high] = [52, 8, 230], wide = room(482) - left - 10;
    const x = (value) => left + (wide * (value - x0)) / (x1 - x0), y = (value) => top + high * (1 - (value - y0) / (y1 - y0));
    const every = (all) => all.filter((_, index) => index % Math.ceil(all.length / 7) === 0);
    return s("svg", { viewBox: `0 0 ${left + wide + 10} ${top + high + 40}`, width: left + wide + 10, height: top + high + 40, role: "img", "aria-label": name },
      every(powers(x0, x1)).map((power) => [s("path", { class: "grid", d: `M${x(power)} ${top}V${top + high}` }), s("text", { x: x(power), y: top + high + 15, "text-anchor": "middle" }, superscript(power))]),
      every(powers(y0, y1)).map((power) => [s("path", { class: "grid", d: `M${left} ${y(power)}H${left + wide}` }), s("text", { x: left - 6, y: y(power) + 4, "text-anchor": "end" }, superscript(power))]),
      s("path", { class: "axis", d: `M${left} ${top}V${top + high}H${left + wide}` }),
      draw(x, y),
      s("text", { x: left + wide / 2, y: top + high + 34, "text-anchor": "middle" }, xName),
      s("text", { x: 0, y: 0, transform: `translate(11 ${top + high / 2}) rotate(-90)`, "text-anchor": "middle" }, yName));
  }

  function histogram(found) {
    const [positive, negative] = found.histogram;
    const width = found.bins.length > 1 ? found.bins[1] - found.bins[0] : 0.25;
    const most = Math.log10(Math.max(...positive, ...negative, 1)) + 0.15;
    const name = `Histogram: ${count(found.counts[0])} sequences above 0, ${count(found.counts[1])} below.`;
    const bars = (counts, sign, offset) => (x, y) => counts.map((number, index) => number > 0 && s("rect", {
      class: sign, x: x(found.bins[index] + offset * width) + 0.5, width: Math.max(1, x(width / 2) - x(0) - 1), y: y(Math.log10(number)), height: Math.max(0, y(-0.3) - y(Math.log10(number))),
    }, s("title", {}, `${count(number)} between ${plain(10 ** found.bins[index], 2)} and ${plain(10 ** (found.bins[index] + width), 2)}`)));
    return h("figure", {}, logarithmic([found.bins[0], found.bins.at(-1) + width], [-0.3, most], "size of the influence" + (unit && ", nats"), "sequences", name,
      (x, y) => [bars(positive, "positive", 0)(x, y), bars(negative, "negative", 0.5)(x, y)]),
    h("figcaption", {}, `${count(found.counts[0])} sequences ${influences ? `raise ${goal}` : "lie with the direction"} (blue, ${plain(found.sums[0], 4)}${unit} in all), ${count(found.counts[1])} ${influences ? "lower it" : "against it"} (orange, ${plain(found.sums[1], 4)}${unit})` + (found.counts[2] ? `, ${count(found.counts[2])} have none.` : ".")));
  }

  function tail(found) {
    const law = found.power_law, log = Math.log10;
    const points = found.tail.map(([value, share]) => [log(value), log(share)]).filter(([value]) => value > log(found.tail[0][0]) - 5);
    if (points.length < 2) return null;
    const [x0, x1] = [Math.min(...points.map(([value]) => value)), points[0][0]];
    const name = law ? `Share of the positive influences that are as large or larger; power law with exponent ${law.alpha.toFixed(2)} from ${plain(law.x_min)} on.` : "Share of the positive influences that are as large or larger.";
    const ends = law && [[log(law.x_min), log(law.tail / found.counts[0])], [x1, log(law.tail / found.counts[0]) + (1 - law.alpha) * (x1 - log(law.x_min))]];
    const low = Math.min(points[0][1], ends ? ends[1][1] : 0) - 0.15;
    return h("figure", {}, logarithmic([x0 - 0.05, x1 + 0.1], [low, 0.08], "influence" + (unit && ", nats"), "share that is as large", name, (x, y) => [
      points.map(([value, share]) => s("circle", { class: "positive", cx: x(value), cy: y(share), r: 2 })),
      ends && s("path", { class: "fit", d: `M${x(ends[0][0])} ${y(ends[0][1])}L${x(ends[1][0])} ${y(ends[1][1])}` }),
    ]), h("figcaption", {}, name));
  }

  function distribution(found) {
    const line = (name, ...cells) => h("tr", {}, h("th", { scope: "row" }, name), cells.map((cell) => h("td", { class: "number" }, cell)));
    const concentration = found.concentration, law = found.power_law;
    return [h("div", { class: "plots" }, histogram(found), tail(found)), h("div", { class: "plots" },
      concentration && h("div", {}, h("table", { class: "shares" },
        h("thead", {}, h("tr", {}, ["The strongest", "sequences", "hold of the positive influence"].map((name, index) => h("th", { scope: "col", class: index ? "number" : null }, name)))),
        h("tbody", {}, concentration.shares.map((part) => line(`${plain(100 * part.fraction, 1)} %`, count(part.sequences), `${(100 * part.share).toFixed(1)} %`)),
          line("participation ratio", count(Math.round(concentration.participation_ratio)), ""))),
      h("p", { class: "note" }, `Of the sequences with positive influence. Participation ratio, (Σx)² / Σx²: the influence is as concentrated as if ${concentration.participation_ratio.toFixed(1)} sequences had all of it, in equal parts.`)),
      h("div", { class: "wide" }, law ? [h("table", { class: "laws" },
        h("thead", {}, h("tr", {}, ["Law of the tail", "", "log-likelihood ratio", "p"].map((name, index) => h("th", { scope: "col", class: index ? "number" : null }, name)))),
        h("tbody", {}, line("power law", `α = ${law.alpha.toFixed(2)} ± ${law.alpha_error.toFixed(2)}`, "", probability(law.p, law.samples)),
          found.rivals.map((rival) => line(rival.name, rival.parameters.map(([name, value]) => `${name} ${plain(value)}`).join(", "), significant(rival.ratio, 3), probability(rival.p, 200))))),
      h("p", { class: "note" }, `Density x^−α from x_min = ${plain(law.x_min)}${unit} on, ${count(law.tail)} sequences. ${law.p < 0.1 ? "Rejected" : "Not rejected"}: ${Math.round(law.p * law.samples)} of ${law.samples} synthetic sets lie as far or farther from their own fit (rejected below 0.1; not rejected is not confirmed). A ratio above 0 speaks for the power law, below 0 for the rival, and for neither where its p is above 0.1. The log-normal and the Weibull have the power law as a limit: extreme parameters and a ratio near 0 say that their fit went there.`)]
        : h("p", { class: "note" }, "Too few positive influences for the fit of a power law: it takes 50.")))];
  }

  // ── The list of queries ───────────────────────────────────────────────────────────────────────────────────────────
  const links = [...byId("queries").children];
  let page = 0, matching = links;
  function paged() {
    const pages = Math.max(1, Math.ceil(matching.length / PAGE));
    page = Math.max(0, Math.min(pages - 1, page));
    const on = new Set(matching.slice(page * PAGE, (page + 1) * PAGE));
    links.forEach((link) => { link.hidden = !on.has(link); });
    byId("queries").scrollTop = 0;
    const turn = (step, text, name) => h("button", { disabled: page + step < 0 || page + step >= pages, "aria-label": name, onclick: () => { page += step; paged(); } }, text);
    const said = matching.length ? `${page * PAGE + 1}–${Math.min(matching.length, (page + 1) * PAGE)} of ${matching.length}` : "no query";
    byId("pager").replaceChildren(...(pages > 1 ? [turn(-1, "‹", "Earlier queries"), h("span", {}, said), turn(1, "›", "Later queries")] : matching.length < links.length ? [h("span", {}, said)] : []));
  }
  function current(entry) {
    for (const link of document.querySelectorAll("#browse a")) {
      if (link.getAttribute("href") === (entry ? `#query-${entry.query}` : "#all")) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
    }
    const at = matching.findIndex((link) => link.hasAttribute("aria-current"));
    if (at >= 0) page = Math.floor(at / PAGE);
    paged();
    reveal();
  }
  // The list is as high as the window has room for it, and shows the current query.
  function reveal() {
    const list = byId("queries"), nav = document.querySelector("nav");
    const above = document.querySelector("body > header").getBoundingClientRect().bottom;
    nav.style.setProperty("--room", `${Math.round(innerHeight - Math.max(0, above))}px`);
    const link = list.querySelector("[aria-current]");
    if (!link || link.hidden) return;
    const [own, all] = [link.getBoundingClientRect(), list.getBoundingClientRect()];
    list.scrollTop += Math.max(0, own.bottom - all.bottom) - Math.max(0, all.top - own.top);
  }
  addEventListener("scroll", reveal, { passive: true });
  addEventListener("resize", reveal);
  const narrow = matchMedia("(max-width: 50rem)");
  const fold = () => { byId("browse").open = !narrow.matches; };
  narrow.addEventListener("change", () => { fold(); if (shown !== null) draw(drawn); });
  fold();
  byId("browse").addEventListener("click", (event) => { if (narrow.matches && event.target.closest("a")) byId("browse").open = false; });

  // Search: queries at once, passages of every query as they are read.
  let search = 0;
  function find(text) {
    const needle = text.trim().toLowerCase(), mine = ++search;
    const has = (entry) => !needle || `${entry.query} ${entry.id} ${entry.name} ${entry.text}`.toLowerCase().includes(needle);
    matching = links.filter((_, index) => has(study.queries[index]));
    page = 0;
    paged();
    const trs = [...document.querySelectorAll(".queries tbody tr")];
    trs.forEach((tr) => { tr.dataset.out = has(study.queries.find((entry) => String(entry.query) === tr.dataset.query)) ? "" : "out"; });
    lines(false);
    const found = new Map(), out = byId("found");
    if (needle.length < 2) return out.replaceChildren();
    if (narrow.matches) byId("browse").open = true;
    out.replaceChildren(h("p", { class: "note" }, "Looking through the passages …"));
    const next = (index) => {
      if (mine !== search) return;
      const entry = study.queries[index];
      if (!entry) return report();
      load(entry, (view) => {
        if (view) for (const row of view.rows) {
          const at = row.text.toLowerCase().indexOf(needle);
          if (at < 0 && !row.doc.toLowerCase().includes(needle)) continue;
          if (!found.has(row.example)) found.set(row.example, { row, at, places: [] });
          found.get(row.example).places.push([view.query, row]);
        }
        if (index % 20 === 19) setTimeout(() => next(index + 1)); else next(index + 1);
      });
    };
    const report = () => {
      const some = [...found.values()];
      const excerpt = ({ row, at }) => {
        if (at < 0) return short(row.text, 90);
        const from = Math.max(0, at - 30);
        return [from > 0 && "…", row.text.slice(from, at), h("mark", {}, row.text.slice(at, at + needle.length)), row.text.slice(at + needle.length, at + needle.length + 50), "…"];
      };
      out.replaceChildren(h("h3", {}, `${count(some.length)} passage${some.length === 1 ? "" : "s"}`),
        ...some.slice(0, FOUND).map((hit) => h("div", { class: "hit" }, h("bdi", { class: "doc" }, hit.row.doc), h("p", {}, excerpt(hit)),
          h("p", { class: "places" }, hit.places.slice(0, 6).flatMap(([query, row]) => [h("a", { href: address(query, row) }, `query ${query} ${label(row)}`), " "]), hit.places.length > 6 && `and ${hit.places.length - 6} more`))),
        ...(some.length > FOUND ? [h("p", { class: "note" }, `and ${count(some.length - FOUND)} more`)] : []));
    };
    next(0);
  }
  let waiting;
  byId("find").addEventListener("input", (event) => { clearTimeout(waiting); waiting = setTimeout(() => find(event.target.value), 120); });

  // ── The table of all queries ──────────────────────────────────────────────────────────────────────────────────────
  const body = document.querySelector(".queries tbody");
  const more = h("button", { class: "more", onclick: () => lines(true) });
  let whole = false;
  function lines(all) {
    whole = whole || all;
    const on = [...body.rows].filter((tr) => tr.dataset.out !== "out");
    [...body.rows].forEach((tr) => { tr.hidden = true; });
    on.slice(0, whole ? on.length : LINES).forEach((tr) => { tr.hidden = false; });
    more.hidden = whole || on.length <= LINES;
    more.textContent = `Show all ${on.length}`;
  }
  document.querySelectorAll(".queries thead th").forEach((th, index) => {
    const value = (tr) => { const cell = tr.cells[index]; return index === 0 ? Number(tr.dataset.query) : cell.dataset.value === undefined ? -Infinity : Number(cell.dataset.value); };
    const button = h("button", { class: "quiet sort", onclick: () => {
      const down = th.getAttribute("aria-sort") === (index === 0 ? "ascending" : "descending") ? !(index === 0) : index === 0;
      document.querySelectorAll(".queries thead th").forEach((other) => other.removeAttribute("aria-sort"));
      th.setAttribute("aria-sort", down ? "ascending" : "descending");
      body.append(...[...body.rows].sort((left, right) => (down ? 1 : -1) * (value(left) - value(right))));
      lines(false);
    } }, ...th.childNodes);
    th.replaceChildren(button);
  });
  byId("study-buttons").append(...downloads("queries", () => {
    const names = [...document.querySelectorAll(".queries thead th")].map((th) => th.dataset.name);
    const rows = [...body.rows].filter((tr) => tr.dataset.out !== "out").map((tr) => {
      const entry = study.queries.find((entry) => String(entry.query) === tr.dataset.query);
      return [entry.query, entry.id, entry.text, ...[...tr.cells].slice(1).map((cell) => (cell.dataset.value === undefined ? null : Number(cell.dataset.value)))];
    });
    return { columns: ["query", "query_id", "text", ...names.slice(1)], rows };
  }));
  body.closest(".scroll").after(more);
  lines(false);

  // ── Begin ─────────────────────────────────────────────────────────────────────────────────────────────────────────
  if (study.profile) byId("average-profile").replaceChildren(profile(study.profile, null));
  window.addEventListener("hashchange", route);
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, textarea, select")) return;
    if (event.key === "/") { event.preventDefault(); return byId("find").focus(); }
    const at = study.queries.findIndex((entry) => entry.query === shown);
    const other = { n: study.queries[at + 1], p: study.queries[at - 1] }[event.key];
    if (other) location.hash = `query-${other.query}`;
  });
  if (!location.hash && study.queries.length) history.replaceState(null, "", `#query-${study.queries[0].query}`);
  route();
})();
