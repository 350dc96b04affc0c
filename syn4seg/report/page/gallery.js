// The gallery: filters, sorts and shows samples out of the sheets in the page; full pictures come from the run directory beside it.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("gallery-data").textContent);
  const $ = (id) => document.getElementById(id);
  const PAGE = 60, CELLS = data.row * data.row;
  const state = { shown: [], walk: [], page: 0, open: -1, zoom: 1 };
  // A page that was copied away from its run asks for no picture there, unless it is told to: each one missing would be an error.
  const folder = location.pathname.split("/").at(-2) || "";
  state.full = location.protocol !== "file:" || folder === encodeURIComponent(data.beside) || folder === data.beside;

  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "class") node.className = value;
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (key === "style") Object.assign(node.style, value);
      else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  };
  const percent = (share) => share === undefined ? "-" : (100 * share).toFixed(share < 0.0995 ? 1 : 0) + " %";
  const number = (value, digits = 3) => value === undefined || value === null ? "-" : value.toFixed(digits);

  // ------------------------------------------------------------------------------------------------- pictures
  const blobs = new Map();  // one picture per sheet, however many thumbnails show it
  const sheetUrl = (layer, index) => {
    const key = layer + index;
    if (!blobs.has(key)) {
      const [head, body] = data.sheets[layer][index].split(",");
      const bytes = Uint8Array.from(atob(body), (c) => c.charCodeAt(0));
      blobs.set(key, URL.createObjectURL(new Blob([bytes], { type: head.slice(5, head.indexOf(";")) })));
    }
    return blobs.get(key);
  };
  const shape = (item) => {  // of the thumbnail inside its cell, in pixels
    const [w, h] = item.size || [data.side, data.side], scale = Math.min(1, data.side / Math.max(w, h));
    return [Math.max(1, Math.round(w * scale)), Math.max(1, Math.round(h * scale))];
  };
  const sprite = (item, layer, name) => {
    const cell = item.at % CELLS, index = Math.floor(item.at / CELLS), [w, h] = shape(item);
    const rows = Math.ceil(Math.min(CELLS, data.items.length - index * CELLS) / data.row);
    const x = (cell % data.row) * data.side, y = Math.floor(cell / data.row) * data.side;
    const wide = data.row * data.side, high = rows * data.side;
    return make("div", { class: "sprite " + name, style: {
      backgroundImage: `url(${sheetUrl(layer, index)})`, backgroundSize: `${100 * wide / w}% ${100 * high / h}%`,
      backgroundPosition: `${wide > w ? 100 * x / (wide - w) : 0}% ${high > h ? 100 * y / (high - h) : 0}%`,
    } });
  };
  const view = (item, pane, width) => {
    const [w, h] = shape(item);
    const node = make("div", { class: "view", role: "img", "aria-label": `${pane.title} of ${item.id}`,
                               style: { aspectRatio: `${w} / ${h}`, ...(width ? { width: width + "px" } : {}) } });
    if (item.damage) return make("div", { class: "bad" }, "damaged");
    node.append(sprite(item, pane.photo, "photo"));
    if (pane.label && !made(item, pane)) {
      node.append(make("span", { class: "absent" }, "not made"));
      return node;
    }
    if (pane.label) node.append(sprite(item, pane.label, "label"));
    if (decides(item, pane)) node.append(sprite(item, pane.who, "who"));
    return node;
  };
  const made = (item, pane) => (item.stages || []).includes(pane.label) || (pane.label === "truth" && item.iou !== undefined);
  // Who decided is shown over the last label that a sample has; a comparison shows its difference over both.
  const decides = (item, pane) => pane.who && (pane.photo === "other" || pane.label === "a" || pane.label === (item.stages || []).at(-1));

  // Full pictures. Pixels of a file beside the page cannot be read by a script, so labels are coloured by a filter, and what a
  // stage changed is the difference of two labels, laid over each other.
  const place = (item, layer) => data.files[layer].split("/").map((part) =>
    encodeURIComponent(part.replace("{class}", item.folder || item.class).replace("{id}", item.id))).join("/");
  const picture = (item, layer, name, done) => {
    const node = make("img", { class: name, alt: "" });
    node.addEventListener("load", () => done && done(node));
    node.src = place(item, layer);
    return node;
  };
  const full = (item, pane, node) => {
    if (!data.files || !state.full || item.damage) return;
    picture(item, pane.photo, "photo", (img) => node.querySelector(".photo").replaceWith(img));
    const stages = item.stages || [];
    if (!stages.includes(pane.label)) return;
    picture(item, pane.label, "label", (img) => {
      img.style.filter = "url(#palette)";
      node.querySelector(".label").replaceWith(img);
    });
    if (decides(item, pane)) {
      const layers = [["#draft", "draft"], ["#freed", "draft", "kept"], ["#relabeled", "kept", "relabeled"], ["#boundary", "relabeled", "label"]]
        .filter(([, ...two]) => two.every((one) => stages.includes(one)));
      const all = make("div", { class: "who" });
      let missing = layers.flat().length - layers.length;
      const arrived = () => { missing -= 1; if (!missing) node.querySelector(".who").replaceWith(all); };
      for (const [filter, ...two] of layers)
        all.append(make("div", { class: "stack", style: { filter: `url(${filter})` } }, ...two.map((one) => picture(item, one, "", arrived))));
    }
  };

  // ---------------------------------------------------------------------------------------------------- words
  const nameOf = (k) => k === 255 ? "unlabeled" : data.names[k] ?? "class " + k;
  const targetOf = (item) => (item.shares || []).find(([k]) => k === item.k)?.[1] ?? 0;  // share of the last label
  const headline = (item) => {
    const words = [make("strong", {}, item.class), make("span", {}, item.prompt || ""),
                   make("span", { class: "dim" }, `similarity ${number(item.s, 2)}`), make("span", { class: "dim" }, `changed ${percent(item.changed)}`)];
    if (item.iou !== undefined) words.push(make("span", { class: "dim" }, `IoU ${number(item.iou, 2)}`));
    if (!item.reason && item.shares && !targetOf(item)) words.push(make("span", { class: "bad" }, `no ${item.class} in the label`));
    if (item.reason) words.push(make("span", { class: "bad" }, item.reason));
    return make("span", { class: "words" }, ...words);
  };
  const counted = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
  const story = (item) => {
    const lines = [], pixels = item.pixels || {}, own = item.own || 0, freed = Object.entries(item.freed || {});
    if (item.damage) lines.push(item.damage);
    if (item.pixels) {
      lines.push(own ? `Draft: the segmenter saw ${counted(own, "region")} of ${item.class} among ${counted(item.judged, "region")}`
          + (item.s === undefined ? "." : `; the one most like the support images has similarity ${number(item.s)}.`)
                     : `Draft: the segmenter saw no ${item.class} at all, but ${counted(item.judged || 0, "other region")}.`);
      lines.push(`APF (keeps a region of ${item.class} whose similarity is at least the limit, ${number(item.lambda)}): ` + (freed.length
        ? "freed " + freed.map(([why, n]) => `${counted(n, "region")} because of ${data.words[why] || why}`).join(", ") + `; ${percent(pixels.free)} of the pixels are free.`
        : `freed nothing but unsure pixels: ${percent(pixels.free)} are free.`));
      lines.push(`APR: relabeled ${percent(pixels.relabeled)} of the pixels by their nearest prototype; ${percent(pixels.target)} are ${item.class} now, ${percent(pixels.unlabeled)} stay unlabeled.`);
    }
    if (item.sam && item.sam.accepted !== undefined)
      lines.push(`SABR: SAM's mask was accepted for ${item.sam.accepted} and refused for ${counted(item.sam.refused, "piece")} of the label (agreement `
        + `${(item.sam.agreement || []).map((a) => number(a, 2)).join(", ") || "-"}; accepted from refinement.min_agreement=${data.settings.min_agreement}); `
        + `${percent(item.sam.changed)} of the pixels moved, ${item.class} went from ${percent(pixels.target)} to ${percent(targetOf(item))}.`);
    if (item.iou !== undefined) lines.push(`Truth: the last label's ${item.class} has an IoU of ${number(item.iou, 2)} with the exact one.`);
    lines.push(item.reason ? `Rejected: ${item.reason}: ${data.words[item.reason] || "see the record"}.` : "Accepted: it trains the novel stage"
      + (targetOf(item) || !item.shares ? "." : `, although no pixel of its label is ${item.class}.`));
    return lines.concat(item.lines || []);
  };
  const legend = () => {
    const who = document.body.classList.contains("by-who") ? data.who.map(([name, color]) => [`who decided: ${name}`, color]) : [];
    const open = $("detail").open && state.walk[state.open];
    const there = new Set(open ? [open.k, ...(open.shares || []).map(([k]) => k), ...(open.regions || []).map(([k]) => k)] : []);
    const all = data.names.map((name, k) => [name, data.colors[k], k]).slice(1).concat([["unlabeled", "#ffffff", 255]]);
    const entriesOf = { legend: who.concat(all), "legend-too": who.concat(all.filter(([, , k]) => there.has(k))) };
    for (const [id, entries] of Object.entries(entriesOf)) $(id).replaceChildren(...entries.map(([name, color]) =>
      make("span", {}, make("span", { class: "swatch", style: { background: color } }), name)));
  };

  // ------------------------------------------------------------------------------------------- filter and sort
  const sorts = {
    changed: (a, b) => b.changed - a.changed, low: (a, b) => (a.s ?? -2) - (b.s ?? -2), high: (a, b) => (b.s ?? -2) - (a.s ?? -2),
    target: (a, b) => targetOf(a) - targetOf(b), moved: (a, b) => (b.sam?.changed ?? 0) - (a.sam?.changed ?? 0),
    truth: (a, b) => (a.iou ?? 2) - (b.iou ?? 2), id: (a, b) => a.id < b.id ? -1 : 1,
  };
  const select = () => {
    const name = $("class").value, reason = $("reason").value, text = $("search").value.trim().toLowerCase();
    const most = +$("score").value;
    state.shown = data.items.filter((item) => (!name || item.class === name)
      && (reason === "" || (reason === "accepted" ? !item.reason : reason === "rejected" ? item.reason : item.reason === reason))
      && (most >= 1 || (item.s ?? -2) <= most)
      && (!text || item.id.toLowerCase().includes(text) || (item.prompt || "").toLowerCase().includes(text)));
    state.shown.sort((a, b) => sorts[$("sort").value](a, b) || (a.id < b.id ? -1 : 1));
    $("score-value").textContent = most >= 1 ? "any" : most.toFixed(2);
    state.page = 0;
    draw();
  };
  const draw = () => {
    const pages = Math.max(1, Math.ceil(state.shown.length / PAGE)), start = state.page * PAGE;
    const some = state.shown.slice(start, start + PAGE);
    $("count").textContent = `${state.shown.length} of ${data.items.length} samples` + (pages > 1 ? `, page ${state.page + 1} of ${pages}` : "");
    $("previous").disabled = state.page === 0;
    $("next").disabled = state.page + 1 >= pages;
    $("cards").replaceChildren(...some.map((item, i) => make("li", {}, make("button", { class: "card", "data-i": start + i, onclick: () => open(start + i) },
      headline(item), make("span", { class: "panes" }, ...data.panes.map((pane) =>
        make("span", { class: "pane" }, view(item, pane), pane.title)))))));
    if (!some.length) $("cards").append(make("li", {}, "No sample fits these filters."));
  };

  // --------------------------------------------------------------------------------------------- one sample
  const open = (i, walk = state.shown) => {  // `walk`: the samples that back and next go through
    Object.assign(state, { open: i, walk });
    const item = walk[i];
    $("before").disabled = i === 0;
    $("after").disabled = i + 1 >= walk.length;
    $("title").textContent = `${item.class}: ${item.id}`;
    history.replaceState(null, "", "#sample=" + encodeURIComponent(item.id));
    $("prompt").textContent = item.prompt || "";
    const views = data.panes.map((pane) => {
      const node = view(item, pane);
      full(item, pane, node);
      const frame = { class: "frame", tabindex: 0, role: "region", "aria-label": pane.title, style: { aspectRatio: node.style.aspectRatio } };
      return make("div", { class: "pane" }, pane.title, make("div", frame, node));
    });
    $("panes").replaceChildren(...views);
    $("story").replaceChildren(...story(item).map((line) => make("li", {}, line)));
    const regions = item.regions || [];
    $("regions").replaceChildren(...regions.map(([k, area, s, why]) => make("tr", {}, make("th", { scope: "row" }, nameOf(k)),
      make("td", {}, String(area)), make("td", {}, number(s)), make("td", { class: "left" }, why ? `freed: ${data.words[why] || why}` : "kept"))));
    $("region-table").hidden = !regions.length;
    $("more").textContent = item.more ? `${item.more} smaller regions are in the sample's record.` : "";
    $("facts").textContent = [`noise seed ${item.seed}`, item.size ? `${item.size[0]} x ${item.size[1]} pixels` : "",
      (item.shares || []).map(([k, share]) => `${nameOf(k)} ${percent(share)}`).join(", ")].filter(Boolean).join("; ");
    if (!$("detail").open) $("detail").showModal();
    zoom(1);
    legend();
  };
  const step = (by) => { const i = state.open + by; if (i >= 0 && i < state.walk.length) open(i, state.walk); };
  const zoom = (factor) => {
    state.zoom = Math.min(8, Math.max(1, factor));
    $("detail").style.setProperty("--zoom", state.zoom);
    $("zoom-value").textContent = state.zoom + "x";
    for (const frame of document.querySelectorAll("#panes .frame"))
      frame.scrollTo((frame.scrollWidth - frame.clientWidth) / 2, (frame.scrollHeight - frame.clientHeight) / 2);
  };
  const turn = (by) => {
    if ((by < 0 ? $("previous") : $("next")).disabled) return;
    state.page += by;
    draw();
    $("gallery").scrollIntoView();
    $("cards").querySelector(".card")?.focus();
  };
  const opacity = (value) => {
    const now = Math.min(100, Math.max(0, value));
    for (const id of ["opacity", "opacity-too"]) $(id).value = now;
    document.documentElement.style.setProperty("--opacity", now / 100);
  };
  const layer = (who) => {
    document.body.classList.toggle("by-who", who);
    for (const id of ["by-who", "by-who-too"]) $(id).checked = who;
    legend();
  };

  // ------------------------------------------------------------------------------------------------ wiring
  data.items.forEach((item, i) => { item.at = i; });
  const option = (value, text) => make("option", { value }, text);
  const tally = (values) => { const found = new Map(); values.forEach((v) => found.set(v, (found.get(v) || 0) + 1)); return [...found].sort(); };
  $("class").append(...tally(data.items.map((item) => item.class)).map(([name, n]) => option(name, `${name} (${n})`)));
  $("reason").append(...tally(data.items.filter((item) => item.reason).map((item) => item.reason)).map(([why, n]) => option(why, `${why} (${n})`)));
  if (!data.items.some((item) => item.iou !== undefined)) $("sort").querySelector("[value=truth]").remove();
  for (const id of ["class", "reason", "sort"]) $(id).addEventListener("change", select);
  for (const id of ["search", "score"]) $(id).addEventListener("input", select);
  for (const id of ["opacity", "opacity-too"]) $(id).addEventListener("input", (event) => opacity(+event.target.value));
  for (const id of ["by-who", "by-who-too"]) $(id).addEventListener("change", (event) => layer(event.target.checked));
  $("previous").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));
  $("close").addEventListener("click", () => $("detail").close());
  $("full").hidden = !data.files || state.full;
  $("full").addEventListener("click", () => {
    $("full").hidden = state.full = true;
    open(state.open, state.walk);
  });
  $("before").addEventListener("click", () => step(-1));
  $("after").addEventListener("click", () => step(1));
  $("closer").addEventListener("click", () => zoom(state.zoom * 2));
  $("farther").addEventListener("click", () => zoom(state.zoom / 2));
  const openLinked = () => {  // the sample that the address names, wherever it stands among the filtered ones
    let id = location.hash.startsWith("#sample=") ? location.hash.slice(8) : "";
    try { id = decodeURIComponent(id); } catch { /* not an address of ours: it is shown as it is */ }
    const item = id && data.items.find((one) => one.id === id), i = state.shown.indexOf(item);
    if (item) i < 0 ? open(0, [item]) : open(i);
    else if (id) $("count").textContent = `The sample ${id} is not in this page.`;
  };
  addEventListener("hashchange", openLinked);
  $("detail").addEventListener("close", () => {
    history.replaceState(null, "", location.href.split("#")[0]);
    if (state.walk !== state.shown) return;
    const page = Math.floor(state.open / PAGE);
    if (page !== state.page) { state.page = page; draw(); }
    $("cards").querySelector(`[data-i="${state.open}"]`)?.focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input[type=search]")) {
      if (event.key === "Enter") { event.preventDefault(); $("cards").querySelector(".card")?.focus(); }
      if (event.key === "Escape") { event.preventDefault(); event.target.blur(); }
      return;
    }
    if (event.target.matches("select")) return;
    const cards = [...document.querySelectorAll("#cards .card")], at = cards.indexOf(document.activeElement), shown = $("detail").open;
    const own = event.target.matches("input[type=range]") || (state.zoom > 1 && event.target.closest(".frame"));  // arrows of their own
    const walk = (by) => own || (shown ? step(by) : at >= 0 ? cards[at + by]?.focus() : event.target === document.body && cards[0]?.focus());
    const keys = {
      ArrowRight: () => walk(1), ArrowLeft: () => walk(-1),
      n: () => shown ? step(1) : turn(1), b: () => shown ? step(-1) : turn(-1),
      p: () => layer(!document.body.classList.contains("by-who")), "[": () => opacity(+$("opacity").value - 10),
      "]": () => opacity(+$("opacity").value + 10), "+": () => shown && zoom(state.zoom * 2), "-": () => shown && zoom(state.zoom / 2),
      "/": () => { $("search").focus(); event.preventDefault(); },
    };
    if (keys[event.key]) keys[event.key]();
  });
  const map = $("map"), firsts = new Map();
  for (const item of data.items) {
    const key = item.class + "\n" + item.prompt;
    if (!item.damage && !firsts.has(key)) firsts.set(key, item);
  }
  if (map) for (const point of data.map) {
    const item = firsts.get(point.class + "\n" + point.prompt);
    if (!item) continue;
    const k = data.names.indexOf(point.class), button = make("button", { title: `${point.class}: ${point.prompt}`, "aria-label": point.prompt,
      style: { left: `${4 + 92 * point.x}%`, top: `${96 - 92 * point.y}%`, borderColor: data.colors[k] || "#999" } },
      view(item, { title: "image", photo: "image" }, 34));
    button.addEventListener("click", () => open(0, [item]));
    map.append(button);
  }
  $("gallery").style.setProperty("--panes", data.panes.length);
  opacity(60);
  layer(false);
  select();
  openLinked();
})();
