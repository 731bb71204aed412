"use strict";
// The page can be read without this script; with it, the table sorts and filters, rows unfold, points tell what they
// are, and what is filtered out fades in the figures.
(() => {
  const get = (id) => document.getElementById(id);
  const el = (tag, text, cls) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text; // never innerHTML: what a run holds is text
    if (cls) node.className = cls;
    return node;
  };

  // ---- theme -------------------------------------------------------------------------------------------------
  const theme = get("theme"), root = document.documentElement;
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const nameTheme = () => { theme.textContent = dark() ? "Light" : "Dark"; theme.setAttribute("aria-label", "Switch to " + (dark() ? "light" : "dark") + " colours"); };
  theme.hidden = false;
  nameTheme();
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; nameTheme(); });

  // ---- copying commands --------------------------------------------------------------------------------------
  const copying = (button) => {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const code = button.parentNode.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch { // no clipboard for files in some browsers: select it instead
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  };
  document.querySelectorAll(".copy").forEach(copying);

  // ---- print: what is folded must be on paper ------------------------------------------------------------------
  const folded = [];
  const unfold = () => document.querySelectorAll("details:not([open])").forEach((d) => { folded.push(d); d.open = true; });
  const refold = () => { for (const d of folded.splice(0)) d.open = false; };

  const table = get("table");
  if (!table) {
    addEventListener("beforeprint", unfold);
    addEventListener("afterprint", refold);
    return;
  }
  const data = JSON.parse(get("payload").textContent);
  data.values = data.values.map((pairs) => {
    const row = new Array(data.columns.length).fill(null);
    for (let p = 0; p < pairs.length; p += 2) row[pairs[p]] = pairs[p + 1];
    return row;
  });
  const WHOLE = 400; // rows up to which the table is drawn as a whole; of longer ones only what is in sight
  const PRINTED = 2000; // most rows on paper
  const count = data.anchors.length;
  const body = table.tBodies[0], form = get("filters"), heads = [...table.tHead.rows[0].cells];
  const scroller = table.parentNode, bad = data.columns.indexOf("status");
  const index = new Map(data.anchors.map((id, i) => [id, i]));
  const column = new Map(data.columns.map((name, i) => [name, i]));
  const told = new Map(data.told.map((j, k) => [j, k]));
  const state = { row: "", q: "", sort: "", dir: "asc", filters: {} };
  // Texts that records share stand once in a list; samples are per mille of the median, less 1000.
  const word = (t) => typeof t === "number" ? data.strings[t] : t;
  const words = (i, name) => (data.details[i][name] || []).map(word);
  const label = (i) => words(i, "l").join(" ");
  const textOf = (i, j) => told.has(j) ? data.texts[i][told.get(j)] : String(data.values[i][j] ?? "");
  let searched;
  const searchable = () => searched ??= data.anchors.map((_, i) => [data.numbers[i], ...data.columns.map((_, j) => textOf(i, j)),
    label(i), ...words(i, "r")].join(" ").toLowerCase());

  // ---- rows: made when they come into sight ---------------------------------------------------------------------
  const open = new Map(); // record -> its details
  const made = new Map();
  let view = data.anchors.map((_, i) => i), place = new Map(), drawn = "", high = 0, printing = false;

  const rowOf = (i) => {
    let row = made.get(i);
    if (row) return row;
    if (made.size > 3000) made.clear();
    row = el("tr", undefined, data.values[i][bad] === "ok" ? "" : "bad");
    row.id = data.anchors[i];
    row.setAttribute("aria-rowindex", i + 2);
    const cell = el("td", undefined, "num"), button = el("button", String(data.numbers[i]), "no");
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    button.setAttribute("aria-label", "Record " + button.textContent + ", details");
    button.addEventListener("click", () => toggle(i));
    cell.append(button);
    row.append(cell, ...data.columns.map((_, j) => el("td", textOf(i, j), data.numeric[j] ? "num" : "")));
    made.set(i, row);
    return row;
  };

  const topOf = (k) => {
    let top = k * high;
    for (const [i, more] of open) if (place.get(i) < k) top += more.offsetHeight || Number(more.dataset.high) || 0;
    return top;
  };
  const at = (y) => { // the row at a height: few are open, so two or three guesses find it
    let k = Math.floor(y / high);
    while (k > 0 && topOf(k) > y) k = Math.max(0, k - Math.max(1, Math.floor((topOf(k) - y) / high)));
    return Math.min(Math.max(k, 0), view.length);
  };
  const pad = (height) => {
    const row = el("tr", undefined, "pad"), cell = el("td");
    cell.colSpan = heads.length;
    cell.style.height = height + "px";
    row.append(cell);
    return row;
  };

  const draw = (force) => {
    for (const more of open.values()) if (more.isConnected) more.dataset.high = more.offsetHeight;
    const all = printing || view.length <= WHOLE || !high;
    let from = 0, to = Math.min(view.length, printing ? PRINTED : high ? WHOLE : 30);
    if (!all) {
      from = Math.max(0, at(scroller.scrollTop) - 25);
      to = Math.min(view.length, at(scroller.scrollTop + scroller.clientHeight) + 40);
    }
    const key = from + " " + to;
    if (!force && key === drawn) return;
    drawn = key;
    const active = document.activeElement, nodes = [];
    const above = all ? 0 : topOf(from), below = all ? 0 : Math.max(0, topOf(view.length) - topOf(to));
    if (above) nodes.push(pad(above));
    for (const i of view.slice(from, to)) {
      nodes.push(rowOf(i));
      if (open.has(i)) nodes.push(open.get(i));
    }
    if (below) nodes.push(pad(below));
    if (printing && to < view.length) {
      const rest = pad(20);
      rest.firstChild.textContent = (view.length - to) + " further records are in the run folder.";
      nodes.push(rest);
    }
    body.replaceChildren(...nodes);
    if (active && active !== document.activeElement && active.isConnected) active.focus({ preventScroll: true });
    if (!high && body.firstChild) {
      const boxes = [...body.rows].slice(0, 30).map((row) => row.getBoundingClientRect()).filter((box) => box.height);
      high = boxes.length ? (boxes[boxes.length - 1].bottom - boxes[0].top) / boxes.length : 26; // no whole number
      draw(true);
    }
  };
  if (count > WHOLE) { // widths must not change while scrolling: as wide as the longest text of each column
    heads.forEach((head, h) => {
      let most = 0;
      for (let i = 0; i < count; i++) most = Math.max(most, h ? textOf(i, h - 1).length : 6);
      head.style.minWidth = Math.min(most, 40) * 0.62 + 1.5 + "em";
    });
  }
  let waiting = false;
  scroller.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(false); });
  }, { passive: true });
  const print = (on) => {
    if (on === printing) return;
    printing = on;
    if (on) unfold(); else refold();
    draw(true);
  };
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  matchMedia("print").addEventListener("change", (event) => print(event.matches));

  // ---- details of a row --------------------------------------------------------------------------------------
  const sparkline = (samples) => {
    const ns = "http://www.w3.org/2000/svg", svg = document.createElementNS(ns, "svg");
    const low = Math.min(...samples), span = (Math.max(...samples) - low) || 1;
    const y = (v) => 64 - 58 * (v - low) / span, x = (i) => samples.length > 1 ? 500 * i / (samples.length - 1) : 250;
    svg.setAttribute("viewBox", "0 0 500 70");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("class", "spark");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", "Samples in the order taken");
    const line = document.createElementNS(ns, "line");
    for (const [k, v] of [["x1", 0], ["x2", 500], ["y1", y(1000)], ["y2", y(1000)]]) line.setAttribute(k, v);
    const path = document.createElementNS(ns, "path");
    path.setAttribute("d", samples.map((v, i) => (i ? "L" : "M") + x(i).toFixed(1) + " " + y(v).toFixed(1)).join(""));
    svg.append(line, path);
    return svg;
  };

  const detail = (i) => {
    const d = data.details[i], row = el("tr", undefined, "detail"), cell = el("td"), inner = el("div", undefined, "inner");
    const reason = words(i, "r"), samples = d.s && d.s.map((v) => v + 1000);
    row.id = "d" + data.anchors[i].slice(1);
    cell.colSpan = heads.length;
    inner.append(el("h4", label(i)));
    if (reason.length) inner.append(el("p", reason[1] + " (" + reason[0] + ")", "flag"));
    for (const [code, message] of d.f || []) {
      const p = el("p", undefined, "flag");
      p.append(el("b", code.replaceAll("_", " ")), ": " + message + " - " + (data.flags[code] || "unknown flag"));
      inner.append(p);
    }
    const list = el("dl", undefined, "facts");
    const facts = [...words(i, "w"), ...(data.environment ? ["environment", data.environment] : [])];
    for (let j = 0; j < facts.length; j += 2) {
      const pair = el("div");
      pair.append(el("dt", facts[j]), el("dd", facts[j + 1]));
      list.append(pair);
    }
    inner.append(list);
    if (samples && samples.length > 1) {
      const low = (Math.min(...samples) / 10 - 100).toFixed(1), most = (Math.max(...samples) / 10 - 100).toFixed(1);
      const some = samples.length < d.n ? samples.length + " of " + d.n + " samples" : d.n + " samples";
      inner.append(sparkline(samples), el("p", some + " in the order taken, from " + low + " % to +" + most + " % of the median (dashed).", "note"));
    } else if (data.large && d.n) inner.append(el("p", "This run is too large to carry samples here: they are in its records.jsonl, under the key above.", "note"));
    inner.append(el("p", "This command measures it again:", "note"));
    const command = el("div", undefined, "command"), button = el("button", "Copy", "copy");
    button.type = "button";
    command.append(el("code", words(i, "c").join(" ")), button);
    copying(button);
    inner.append(command);
    cell.append(inner);
    row.append(cell);
    return row;
  };

  const toggle = (i, wanted) => {
    const row = rowOf(i), button = row.cells[0].firstChild, isOpen = open.has(i);
    if (wanted === undefined) wanted = !isOpen;
    if (wanted === isOpen) return;
    row.classList.toggle("open", wanted);
    button.setAttribute("aria-expanded", String(wanted));
    if (wanted) {
      const more = detail(i);
      open.set(i, more);
      button.setAttribute("aria-controls", more.id);
      state.row = data.anchors[i];
    } else {
      open.delete(i);
      button.removeAttribute("aria-controls");
      if (state.row === data.anchors[i]) state.row = "";
    }
    draw(true);
    writeUrl();
  };

  // ---- sorting and filtering ---------------------------------------------------------------------------------
  const passes = (i) => {
    for (const [name, wanted] of Object.entries(state.filters)) {
      const value = String(data.values[i][column.get(name)] ?? "");
      if (name === "flags" ? !value.split(" ").includes(wanted) : value !== wanted) return false;
    }
    return !state.q || state.q.toLowerCase().split(/\s+/).every((part) => searchable()[i].includes(part));
  };

  // Points of records that the filter leaves out fade: the figures show what the table shows.
  let marks;
  const fade = (shown) => {
    if (!shown && !marks) return;
    marks ??= [...document.querySelectorAll('svg.plot a[href^="#r-"]')].map((a) => [a, index.get(a.getAttribute("href").slice(1))]);
    for (const [a, i] of marks) a.classList.toggle("off", shown ? !shown.has(i) : false);
  };
  const chip = get("chip");
  chip.lastElementChild.addEventListener("click", () => { state.q = ""; state.filters = {}; fillForm(); apply(); writeUrl(); });

  const apply = () => {
    const order = data.anchors.map((_, i) => i), c = column.get(state.sort), sign = state.dir === "desc" ? -1 : 1;
    if (c !== undefined) {
      order.sort((a, b) => {
        const x = data.values[a][c] ?? "", y = data.values[b][c] ?? "";
        if (x === "" || y === "") return (x === "") - (y === "") || a - b; // empty ones last, either way
        return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y))) || a - b;
      });
    } else if (sign < 0) order.reverse();
    const narrowed = state.q || Object.keys(state.filters).length;
    view = narrowed ? order.filter(passes) : order;
    place = new Map(view.map((i, k) => [i, k]));
    draw(true);
    fade(narrowed ? new Set(view) : null);
    chip.hidden = !narrowed;
    if (narrowed) {
      const given = [...Object.entries(state.filters).map(([n, v]) => n.replace("p.", "") + " " + v.replaceAll("_", " ")), ...(state.q ? ["\u201c" + state.q + "\u201d"] : [])];
      chip.firstElementChild.textContent = given.join(", ") + ": " + view.length + " of " + count + " records; others are faded in the figures.";
    }
    for (const head of heads) {
      const on = (data.columns[head.dataset.c] ?? "number") === (state.sort || "number");
      if (on && (state.sort || sign < 0)) head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    get("shown").textContent = view.length + " of " + count + " records";
  };

  // ---- state in the URL: #r-<key>?dtype=bf16&sort=time_s&dir=desc&q=words --------------------------------------
  const writeUrl = () => {
    const query = new URLSearchParams(state.filters);
    if (state.q) query.set("q", state.q);
    if (state.sort) query.set("sort", state.sort);
    if (state.dir === "desc") query.set("dir", "desc");
    const text = query.toString(), where = state.row || (text ? "records" : "");
    const hash = where + (text ? "?" + text : "");
    if (location.hash.slice(1) !== hash) history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search);
  };

  const readUrl = () => {
    const [target, text] = location.hash.slice(1).split(/\?(.*)/s);
    const query = new URLSearchParams(text || "");
    if (text !== undefined) { // a link without a query keeps what is set
      state.q = query.get("q") || "";
      state.sort = column.has(query.get("sort")) ? query.get("sort") : "";
      state.dir = query.get("dir") === "desc" ? "desc" : "asc";
      state.filters = Object.fromEntries(data.filters.filter((name) => query.get(name)).map((name) => [name, query.get(name)]));
    }
    const i = index.get(target);
    if (i !== undefined && !passes(i)) { state.q = ""; state.filters = {}; } // a link leads to its record, always
    fillForm();
    apply();
    if (i !== undefined) {
      state.row = target;
      toggle(i, true);
      writeUrl();
      scroller.scrollTop = Math.max(0, topOf(place.get(i)) - scroller.clientHeight / 3);
      draw(false);
      rowOf(i).scrollIntoView({ block: "center" });
      rowOf(i).cells[0].firstChild.focus({ preventScroll: true });
    } else if (get(target)) {
      for (let box = get(target).closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
      if (text !== undefined) get(target).scrollIntoView();
    }
  };

  const fillForm = () => {
    form.elements.q.value = state.q;
    for (const name of data.filters) if (form.elements[name]) form.elements[name].value = state.filters[name] || "";
  };
  const readForm = () => {
    state.q = form.elements.q.value.trim();
    state.filters = Object.fromEntries(data.filters.filter((n) => form.elements[n] && form.elements[n].value).map((n) => [n, form.elements[n].value]));
    apply();
    writeUrl();
  };
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const kind of ["input", "change"]) form.addEventListener(kind, readForm);
  form.addEventListener("reset", () => setTimeout(readForm));
  for (const head of heads) {
    head.firstChild.addEventListener("click", () => {
      const name = data.columns[head.dataset.c] ?? "";
      if (state.sort === name) state.dir = state.dir === "asc" ? "desc" : "asc";
      else { state.sort = name; state.dir = data.numeric[head.dataset.c] && name !== "time_s" && !name.startsWith("p.") ? "desc" : "asc"; }
      apply();
      writeUrl();
    });
  }
  addEventListener("hashchange", readUrl);

  // ---- points --------------------------------------------------------------------------------------------------
  const tip = get("tip");
  const recordOf = (event) => {
    const link = event.target.closest && event.target.closest("svg a");
    const href = link && link.getAttribute("href");
    return href ? index.get(href.slice(1)) : undefined;
  };
  const say = (i) => {
    const about = ["time_s", "half_width", "flops_per_s", "share", "efficiency"].map((name) => {
      const c = column.get(name);
      return c !== undefined && textOf(i, c) ? heads[c + 1].textContent + " " + textOf(i, c) : "";
    });
    return label(i) + "\n" + about.filter(Boolean).join(", ");
  };
  document.addEventListener("pointerover", (event) => {
    const i = recordOf(event);
    tip.hidden = i === undefined;
    if (i === undefined) return;
    tip.textContent = say(i);
    const box = event.target.getBoundingClientRect(), wide = tip.offsetWidth, high = tip.offsetHeight;
    tip.style.left = Math.max(8, Math.min(innerWidth - wide - 8, box.left + box.width / 2 - wide / 2)) + "px";
    tip.style.top = (box.top > high + 14 ? box.top - high - 8 : box.bottom + 8) + "px";
  });
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  document.addEventListener("click", (event) => { // the same record twice changes no hash
    const i = recordOf(event);
    if (i !== undefined && location.hash.slice(1).split("?")[0] === data.anchors[i]) { event.preventDefault(); readUrl(); }
  });

  if (location.hash) readUrl(); else apply();
})();
