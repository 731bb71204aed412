"use strict";
// The page works without this script; with it, the table sorts and filters, rows unfold, points tell what they are.
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

  const table = get("table");
  if (!table) return;
  const data = JSON.parse(get("payload").textContent);
  // Texts that records share stand once in a list; samples are per mille of the median, less 1000.
  for (const d of data.details) {
    for (const name of ["l", "c", "w", "r"]) if (d[name]) d[name] = d[name].map((t) => typeof t === "number" ? data.strings[t] : t);
    d.l = d.l.join(" ");
    d.c = d.c.join(" ");
    if (d.s) d.s = d.s.map((v) => v + 1000);
  }
  const body = table.tBodies[0], form = get("filters"), heads = [...table.tHead.rows[0].cells];
  const rows = data.anchors.map((id) => get(id));
  const index = new Map(data.anchors.map((id, i) => [id, i]));
  const column = new Map(data.columns.map((name, i) => [name, i]));
  const texts = rows.map((row, i) => [...row.cells].map((cell) => cell.textContent)
    .concat(data.details[i].l, data.details[i].r || []).join(" ").toLowerCase());
  const state = { row: "", q: "", sort: "", dir: "asc", filters: {} };

  rows.forEach((row, i) => {
    const button = el("button", row.cells[0].textContent, "no");
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    button.setAttribute("aria-label", "Record " + button.textContent + ", details");
    button.addEventListener("click", () => toggle(i));
    row.cells[0].replaceChildren(button);
    data.numeric.forEach((numeric, j) => { if (numeric) row.cells[j + 1].className = "num"; });
  });

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
    row.id = "d" + data.anchors[i].slice(1);
    cell.colSpan = heads.length;
    inner.append(el("h4", d.l));
    if (d.r) inner.append(el("p", d.r[1] + " (" + d.r[0] + ")", "flag"));
    for (const [code, message] of d.f || []) {
      const p = el("p", undefined, "flag");
      p.append(el("b", code.replaceAll("_", " ")), ": " + message + " - " + (data.flags[code] || "unknown flag"));
      inner.append(p);
    }
    const list = el("dl", undefined, "facts");
    const facts = [...d.w, ...(data.environment ? ["environment", data.environment] : [])];
    for (let j = 0; j < facts.length; j += 2) {
      const pair = el("div");
      pair.append(el("dt", facts[j]), el("dd", facts[j + 1]));
      list.append(pair);
    }
    inner.append(list);
    if (d.s && d.s.length > 1) {
      const low = (Math.min(...d.s) / 10 - 100).toFixed(1), high = (Math.max(...d.s) / 10 - 100).toFixed(1);
      const some = d.s.length < d.n ? d.s.length + " of " + d.n + " samples" : d.n + " samples";
      inner.append(sparkline(d.s), el("p", some + " in the order taken, from " + low + " % to +" + high + " % of the median (dashed).", "note"));
    }
    inner.append(el("p", "This command measures it again:", "note"));
    const command = el("div", undefined, "command"), button = el("button", "Copy", "copy");
    button.type = "button";
    command.append(el("code", d.c), button);
    copying(button);
    inner.append(command);
    cell.append(inner);
    row.append(cell);
    return row;
  };

  const toggle = (i, open) => {
    const row = rows[i], button = row.cells[0].firstChild, isOpen = row.classList.contains("open");
    if (open === undefined) open = !isOpen;
    if (open === isOpen) return;
    row.classList.toggle("open", open);
    button.setAttribute("aria-expanded", String(open));
    if (open) {
      const more = detail(i);
      row.after(more);
      button.setAttribute("aria-controls", more.id);
      state.row = data.anchors[i];
    } else {
      row.nextElementSibling.remove();
      button.removeAttribute("aria-controls");
      if (state.row === data.anchors[i]) state.row = "";
    }
    writeUrl();
  };

  // ---- sorting and filtering ---------------------------------------------------------------------------------
  const passes = (i) => {
    for (const [name, wanted] of Object.entries(state.filters)) {
      const value = String(data.values[i][column.get(name)] ?? "");
      if (name === "flags" ? !value.split(" ").includes(wanted) : value !== wanted) return false;
    }
    return state.q.toLowerCase().split(/\s+/).every((word) => texts[i].includes(word));
  };

  const apply = () => {
    const order = rows.map((_, i) => i), c = column.get(state.sort), sign = state.dir === "desc" ? -1 : 1;
    if (c !== undefined) {
      order.sort((a, b) => {
        const x = data.values[a][c] ?? "", y = data.values[b][c] ?? "";
        if (x === "" || y === "") return (x === "") - (y === "") || a - b; // empty ones last, either way
        return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y))) || a - b;
      });
    } else if (sign < 0) order.reverse();
    let count = 0;
    const nodes = document.createDocumentFragment();
    for (const i of order) {
      const row = rows[i], more = row.classList.contains("open") ? row.nextElementSibling : null, shown = passes(i);
      row.hidden = !shown;
      nodes.append(row);
      if (more) { more.hidden = !shown; nodes.append(more); }
      count += shown;
    }
    body.append(nodes);
    for (const head of heads) {
      const on = (data.columns[head.dataset.c] ?? "number") === (state.sort || "number");
      if (on && (state.sort || sign < 0)) head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    get("shown").textContent = count + " of " + rows.length + " records";
  };

  // ---- state in the URL: #r-<key>?dtype=bf16&sort=time_s&dir=desc&q=words --------------------------------------
  const writeUrl = () => {
    const query = new URLSearchParams(state.filters);
    if (state.q) query.set("q", state.q);
    if (state.sort) query.set("sort", state.sort);
    if (state.dir === "desc") query.set("dir", "desc");
    const text = query.toString(), place = state.row || (text ? "records" : "");
    const hash = place + (text ? "?" + text : "");
    if (location.hash.slice(1) !== hash) history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search);
  };

  const readUrl = () => {
    const [place, text] = location.hash.slice(1).split(/\?(.*)/s);
    const query = new URLSearchParams(text || "");
    if (text !== undefined) { // a link without a query keeps what is set
      state.q = query.get("q") || "";
      state.sort = column.has(query.get("sort")) ? query.get("sort") : "";
      state.dir = query.get("dir") === "desc" ? "desc" : "asc";
      state.filters = Object.fromEntries(data.filters.filter((name) => query.get(name)).map((name) => [name, query.get(name)]));
    }
    const i = index.get(place);
    if (i !== undefined && !passes(i)) { state.q = ""; state.filters = {}; } // a link leads to its record, always
    fillForm();
    apply();
    if (i !== undefined) {
      state.row = place;
      toggle(i, true);
      writeUrl();
      rows[i].scrollIntoView({ block: "center" });
      rows[i].cells[0].firstChild.focus({ preventScroll: true });
    } else if (text !== undefined && get(place)) get(place).scrollIntoView();
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
    const cells = [...rows[i].cells].map((cell) => cell.textContent);
    const about = ["time_s", "half_width", "flops_per_s", "share", "efficiency"].map((name) => {
      const c = column.get(name);
      return c !== undefined && cells[c + 1] ? heads[c + 1].textContent + " " + cells[c + 1] : "";
    });
    return data.details[i].l + "\n" + about.filter(Boolean).join(", ");
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
