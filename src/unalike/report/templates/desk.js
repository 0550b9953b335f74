// The evidence desk of an internal page: list, pictures, decisions. It reads the data beside it and asks no network.
(() => {
  "use strict";
  const byId = (id) => document.getElementById(`desk-${id}`);
  const desk = document.getElementById("desk");
  const facts = JSON.parse(byId("facts").textContent);
  const packed = JSON.parse(byId("pictures").textContent);
  const pairs = facts.pairs;
  const KEY = `unalike-decisions-${facts.audit}`;
  const DECISIONS = ["copy", "not a copy", "unsure"];
  const FIGURES = [
    ["synthetic", "Synthetic", "Synthetic image", 0],
    ["train", "Training", "Training image", 1],
    ["over", "Laid over each other", "Training image over the synthetic one", -1],
    ["difference", "Difference", "Synthetic minus training image", -1],
    ["before", "Slice before", "Slice before the training image", 2],
    ["after", "Slice after", "Slice after the training image", 3],
  ];
  const BLINK = 700; // milliseconds: slower than what can trigger a seizure
  const LARGEST_ZOOM = 32;

  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const count = (number) => number.toLocaleString("en");
  const signed = (number, digits) =>
    Number.isFinite(number) ? number.toFixed(digits).replace("-", "−") : "undefined";
  const chance = (p) => {
    if (!Number.isFinite(p)) return "undefined";
    if (p < 1e-6) return "< 0.000001";
    return p.toFixed(Math.max(1, 1 - Math.floor(Math.log10(p))));
  };
  const nameOf = (pair) => `${pair.query}-${pair.reference}`;
  const classOf = (pair) => pair.trainClass || ""; // a pair's class is that of the training image

  // ---------------------------------------------------------------- decisions

  const decided = new Map(); // name of the pair: { decision, note }
  let unexported = false;
  let keeps = true;

  const remember = () => {
    const kept = { by: byId("by").value, unexported, pairs: Object.fromEntries(decided) };
    try {
      localStorage.setItem(KEY, JSON.stringify(kept));
      keeps = true;
    } catch {
      keeps = false; // a page opened from a file may not be allowed to keep anything
    }
    byId("unkept").hidden = keeps;
  };

  const recall = () => {
    const known = new Set(pairs.map(nameOf));
    try {
      const kept = JSON.parse(localStorage.getItem(KEY) || "{}");
      byId("by").value = typeof kept.by === "string" ? kept.by : "";
      unexported = kept.unexported === true;
      for (const [name, entry] of Object.entries(kept.pairs || {})) {
        if (known.has(name) && (entry.decision === "" || DECISIONS.includes(entry.decision)))
          decided.set(name, { decision: entry.decision, note: String(entry.note || "") });
      }
    } catch {
      keeps = false;
    }
    byId("unkept").hidden = keeps;
  };

  const entryOf = (pair) => decided.get(nameOf(pair)) || { decision: "", note: "" };

  const say = (text, bad = false) => {
    byId("message").textContent = text;
    byId("message").classList.toggle("bad", bad);
  };

  const change = (pair, changes) => {
    const entry = { ...entryOf(pair), ...changes };
    if (entry.decision || entry.note) decided.set(nameOf(pair), entry);
    else decided.delete(nameOf(pair));
    unexported = true;
    remember();
    mark(pair);
    showProgress();
  };

  const showProgress = () => {
    const done = (some) => some.filter((pair) => entryOf(pair).decision).length;
    const flagged = pairs.filter((pair) => pair.flagged);
    const [part, whole] = flagged.length ? [done(flagged), flagged.length] : [done(pairs), pairs.length];
    const of = (some, all) => `${count(some)} of ${count(all)}`;
    byId("progress").textContent =
      (flagged.length ? `${of(part, whole)} flagged pairs decided, ` : "Nothing here is flagged; ") +
      `${of(done(pairs), pairs.length)} pairs in all${unexported ? " – not exported yet" : ""}`;
    byId("bar").max = Math.max(1, whole);
    byId("bar").value = part;
  };

  const decide = (decision) => {
    const pair = current();
    if (!pair) return;
    if (entryOf(pair).decision !== decision) {
      change(pair, { decision });
      showDecision(pair);
      say(decision ? `Synthetic image ${count(pair.query)}: ${decision}.` : "Decision cleared.");
    }
    if (decision && byId("onward").checked) step(1);
  };

  const exportDecisions = () => {
    const entries = pairs.filter((pair) => entryOf(pair).decision);
    const by = byId("by").value.trim();
    if (!entries.length) return say("Nothing is decided yet, so there is nothing to export.", true);
    if (!by) {
      byId("by").focus();
      return say("Write your name first: the file says who decided.", true);
    }
    const file = {
      kind: "decisions",
      schema: 1,
      audit: facts.audit,
      name: facts.name,
      made: new Date().toISOString(),
      by,
      pairs: entries.map((pair) => ({ query: pair.query, reference: pair.reference, ...entryOf(pair) })),
    };
    const url = URL.createObjectURL(new Blob([`${JSON.stringify(file, undefined, 1)}\n`], { type: "application/json" }));
    const name = facts.name.replace(/[^\p{L}\p{N}._-]+/gu, "-").replace(/^[-.]+|-+$/g, "") || "audit";
    const link = make("a", { href: url, download: `decisions-${name}.json` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
    unexported = false;
    remember();
    showProgress();
    return say(`${count(entries.length)} decision${entries.length === 1 ? "" : "s"} exported to ${link.download}.`);
  };

  const readDecisions = (text) => {
    let file;
    try {
      file = JSON.parse(text);
    } catch {
      return "This file is not JSON. Choose one that Export decisions wrote.";
    }
    if (!file || file.kind !== "decisions" || file.schema !== 1 || !Array.isArray(file.pairs))
      return "This is no file of decisions that this page can read. Choose one that Export decisions wrote.";
    if (file.audit !== facts.audit)
      return `These decisions are about another audit (${String(file.name)}). Import them in that audit's page.`;
    const known = new Map(pairs.map((pair) => [nameOf(pair), pair]));
    for (const each of file.pairs) {
      if (!each || !known.has(nameOf(each)) || !DECISIONS.includes(each.decision))
        return "This file holds a pair or a decision that this page does not know. Nothing was imported.";
    }
    let replaced = 0;
    for (const each of file.pairs) {
      const before = entryOf(each);
      if (before.decision && before.decision !== each.decision) replaced += 1;
      decided.set(nameOf(each), { decision: each.decision, note: String(each.note || "") });
    }
    if (!byId("by").value && typeof file.by === "string") byId("by").value = file.by;
    unexported = unexported && decided.size > file.pairs.length;
    remember();
    pairs.forEach(mark);
    showProgress();
    if (current()) showDecision(current());
    say(
      `${count(file.pairs.length)} decision${file.pairs.length === 1 ? "" : "s"} of ${String(file.by)} imported` +
        (replaced ? `; ${count(replaced)} of yours replaced.` : ".")
    );
    return "";
  };

  // ---------------------------------------------------------------- the list

  let shown = []; // places of the pairs in the list, in its order
  let chosen = -1; // place of the pair on view
  const current = () => pairs[chosen];
  const rows = [];

  const uri = (place) => `data:${facts.type};base64,${packed[place]}`;
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        watcher.unobserve(entry.target);
        for (const image of entry.target.querySelectorAll("img")) image.src = uri(Number(image.dataset.place));
      }
    },
    { root: byId("list"), rootMargin: "400px" }
  );

  const makeRow = (pair, place) => {
    const button = make("button", { type: "button", tabindex: "-1" });
    const channel = facts.channel;
    if (pair.pictures) {
      for (const side of [0, 1])
        button.append(make("img", { alt: "", width: 48, height: 48, "data-place": pair.pictures[channel][side] }));
    } else {
      button.append(make("i"), make("i"));
    }
    const line = (tag, text, ...marks) => make(tag, {}, make("span", {}, text), ...marks);
    const flag = pair.flagged ? [make("span", { class: "desk-flag" }, "flagged")] : [];
    button.append(
      make(
        "span",
        { class: "desk-row" },
        line("b", `Synthetic ${count(pair.query)}`, make("span", { class: "desk-own" })),
        line("span", [`train ${count(pair.reference)}`, pair.subject, classOf(pair)].filter(Boolean).join(" · ")),
        line("span", `p ${chance(pair.p)} · r ${signed(pair.correlation, 3)}`, ...flag)
      )
    );
    button.addEventListener("click", () => choose(place));
    const row = make("li", {}, button);
    watcher.observe(row);
    return row;
  };

  const mark = (pair) => {
    const { decision, note } = entryOf(pair);
    const own = rows[pair.place].querySelector(".desk-own");
    own.replaceChildren();
    if (note) own.append(make("span", { role: "img", "aria-label": "with a note" }, "✎ "));
    if (decision) own.append(make("span", { class: "desk-mark", "data-decision": decision }, decision));
  };

  const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  const LAST = Number.MAX_VALUE; // undefined numbers come last
  const ORDERS = {
    p: () => 0, // as the audit ranks them: flagged first, then small p-values
    similarity: (a, b) => (b.similarity ?? -LAST) - (a.similarity ?? -LAST),
    correlation: (a, b) => (b.correlation ?? -LAST) - (a.correlation ?? -LAST),
    subject: (a, b) => compare(a.subject, b.subject),
    // In the order of the filter: by name, those without a class last.
    class: (a, b) => facts.classes.indexOf(classOf(a)) - facts.classes.indexOf(classOf(b)),
    query: (a, b) => a.query - b.query,
  };

  const fits = () => {
    const words = byId("find").value.trim().toLowerCase();
    const flagged = byId("flagged").value;
    const state = byId("state").value;
    const wanted = byId("class") && byId("class").value; // only where a pair has a class
    const [from, to] = ["from", "to"].map((id) => byId(id).valueAsNumber);
    return (pair) => {
      const { decision } = entryOf(pair);
      if (words && !pair.subject.toLowerCase().includes(words) && ![pair.query, pair.reference].includes(Number(words)))
        return false;
      if (flagged && pair.flagged !== (flagged === "yes")) return false;
      if (wanted && classOf(pair) !== facts.classes[wanted]) return false;
      if (state && (state === "undecided" ? decision !== "" : decision !== state)) return false;
      if (Number.isFinite(from) && !(pair.similarity >= from)) return false;
      return !(Number.isFinite(to) && !(pair.similarity <= to));
    };
  };

  // A decision does not move its row: the list changes when a filter does, so that nobody loses their place.
  const list = () => {
    const order = ORDERS[byId("sort").value];
    const fit = fits();
    shown = pairs.map((_, place) => place).filter((place) => fit(pairs[place]));
    shown.sort((a, b) => order(pairs[a], pairs[b]) || a - b);
    const nothing = make("li", { class: "desk-none" }, "No pair is like this. Change the filter.");
    byId("list").replaceChildren(...(shown.length ? shown.map((place) => rows[place]) : [nothing]));
    const all = shown.length === pairs.length;
    byId("count").textContent = all
      ? `All ${count(pairs.length)} pairs shown`
      : `${count(shown.length)} of ${count(pairs.length)} pairs shown`;
    byId("list").scrollTop = 0;
    choose(shown.includes(chosen) ? chosen : shown[0] ?? -1);
  };

  const reveal = (row) => {
    const box = byId("list");
    if (row.offsetTop < box.scrollTop) box.scrollTop = row.offsetTop;
    const below = row.offsetTop + row.offsetHeight - box.clientHeight;
    if (below > box.scrollTop) box.scrollTop = below;
  };

  const choose = (place) => {
    const focused = byId("list").contains(document.activeElement);
    if (rows[chosen]) {
      rows[chosen].firstChild.removeAttribute("aria-current");
      rows[chosen].firstChild.tabIndex = -1;
    }
    chosen = place;
    byId("detail").hidden = !current();
    if (!current()) return;
    const button = rows[place].firstChild;
    button.setAttribute("aria-current", "true");
    button.tabIndex = 0;
    reveal(rows[place]);
    if (focused) button.focus({ preventScroll: true });
    showPair(current());
  };

  const step = (by) => {
    const place = shown[shown.indexOf(chosen) + by];
    if (place !== undefined) choose(place);
  };

  // ---------------------------------------------------------------- one pair

  const showPair = (pair) => {
    byId("title").textContent = `Synthetic image ${count(pair.query)} and training image ${count(pair.reference)}`;
    const badge = byId("badge");
    badge.textContent = pair.flagged ? "copy, says the audit" : facts.canFlag ? "not flagged" : "not judged";
    badge.className = `badge ${pair.flagged ? "copies" : "plain"}`;
    const position = shown.indexOf(chosen);
    byId("place").textContent = `${count(position + 1)} of ${count(shown.length)}`;
    byId("back").disabled = position <= 0;
    byId("next").disabled = position >= shown.length - 1;
    const [down, across] = pair.shift;
    const moved = [
      down ? `${Math.abs(down)} px ${down > 0 ? "down" : "up"}` : "",
      across ? `${Math.abs(across)} px ${across > 0 ? "right" : "left"}` : "",
    ].filter(Boolean);
    const numbers = [
      ["p-value", chance(pair.p)],
      ["q-value", chance(pair.q)],
      ["r in place", signed(pair.similarity, 4)],
      ["r as shown", signed(pair.correlation, 4)],
      ["r laid over", signed(pair.laid, 4)],
      ...(pair.measure ? [["measure that spoke", pair.measure]] : []),
      ["pose", pair.pose],
      ["shift", moved.join(", ") || "none"],
      ["seed", pair.seed === undefined ? "unknown" : String(pair.seed)],
      ["subject", make("code", {}, pair.subject)],
      ...(pair.syntheticClass ? [["synthetic class", pair.syntheticClass]] : []),
      ...(pair.trainClass ? [["training class", pair.trainClass]] : []),
      ["synthetic image", count(pair.query)],
      ["training image", count(pair.reference)],
    ];
    byId("numbers").replaceChildren(
      ...numbers.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))
    );
    showDecision(pair);
    showPictures(pair);
  };

  const showDecision = (pair) => {
    const { decision, note } = entryOf(pair);
    for (const button of desk.querySelectorAll("button[data-decision]"))
      button.setAttribute("aria-pressed", String(button.dataset.decision === decision));
    byId("clear").disabled = !decision;
    byId("note").value = note;
  };

  // ---------------------------------------------------------------- pictures

  const figures = {};
  for (const [name, caption, label] of FIGURES) {
    const canvas = make("canvas", { role: "img", "aria-label": label, "data-figure": name });
    const text = make("figcaption", {}, caption);
    figures[name] = { canvas, text, figure: make("figure", {}, text, canvas), label };
    if (name === "before" || name === "after") figures[name].figure.className = "small";
    byId("stage").append(figures[name].figure);
  }

  const view = { mode: "side", zoom: 1, x: 0.5, y: 0.5, front: false };
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  let sources = {}; // what is drawn: a canvas of the picture's own pixels, by figure
  let clock = 0;
  facts.channel = 0;

  const loaded = new Map(); // the last pictures, decoded
  const load = (place) => {
    if (place < 0) return Promise.resolve();
    if (loaded.has(place)) return loaded.get(place);
    if (loaded.size > 64) loaded.delete(loaded.keys().next().value);
    const image = new Image();
    image.src = uri(place);
    const drawn = image.decode().then(() => {
      const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
      canvas.getContext("2d", { willReadFrequently: true }).drawImage(image, 0, 0);
      return canvas;
    });
    loaded.set(place, drawn);
    return drawn;
  };

  // Pixels that came in from outside when the training image was moved have no difference: they stay grey.
  const subtract = (one, other, shift) => {
    const { width, height } = one;
    const [a, b] = [one, other].map((each) => each.getContext("2d").getImageData(0, 0, width, height).data);
    const canvas = make("canvas", { width, height });
    const context = canvas.getContext("2d");
    const drawn = context.createImageData(width, height);
    const steps = (facts.palette.length - 1) / 2;
    const [down, across] = [(shift[0] * height) / facts.size[0], (shift[1] * width) / facts.size[1]];
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) {
        const outside = y < down || y >= height + down || x < across || x >= width + across;
        const at = 4 * (y * width + x);
        const share = (a[at] - b[at]) / 255 / facts.full;
        const colour = outside
          ? [70, 70, 70]
          : facts.palette[steps + Math.round(Math.max(-1, Math.min(1, share)) * steps)];
        drawn.data.set([...colour, 255], at);
      }
    }
    context.putImageData(drawn, 0, 0);
    return canvas;
  };

  const showPictures = async (pair) => {
    byId("stage").hidden = !pair.pictures;
    byId("absent").hidden = Boolean(pair.pictures);
    sources = {};
    if (!pair.pictures) return;
    const places = pair.pictures[facts.channel];
    const [synthetic, train, before, after] = await Promise.all(places.map(load));
    if (pair !== current() || places !== pair.pictures[facts.channel]) return; // another was chosen meanwhile
    sources = { synthetic, train, before, after, difference: subtract(synthetic, train, pair.shift) };
    sources.over = train;
    const where = facts.channels.length > 1 ? `, channel ${facts.channels[facts.channel]}` : "";
    const turned = pair.turned ? `, turned (${pair.pose})` : "";
    figures.train.text.textContent = `Training${pair.turned ? ", turned" : ""}${pair.shift.some(Boolean) ? ", moved" : ""}`;
    figures.train.canvas.setAttribute("aria-label", `Training image ${pair.reference}${turned}${where}`);
    figures.synthetic.canvas.setAttribute("aria-label", `Synthetic image ${pair.query}${where}`);
    for (const name of ["over", "difference", "before", "after"])
      figures[name].canvas.setAttribute("aria-label", figures[name].label + where);
    arrange();
    const next = pairs[shown[shown.indexOf(chosen) + 1]];
    if (next && next.pictures) next.pictures[facts.channel].forEach(load);
  };

  const arrange = () => {
    const together = view.mode !== "side";
    figures.synthetic.figure.hidden = together;
    figures.train.figure.hidden = together;
    figures.over.figure.hidden = !together;
    for (const name of ["before", "after"]) figures[name].figure.hidden = !sources[name];
    byId("mix").hidden = view.mode !== "overlay";
    for (const button of desk.querySelectorAll("button[data-view]"))
      button.setAttribute("aria-pressed", String(button.dataset.view === view.mode));
    caption();
    draw();
  };

  const caption = () => {
    const blinking = view.front ? "Training" : "Synthetic";
    figures.over.text.textContent = view.mode === "blink" ? blinking : "Training over synthetic";
  };

  const paint = ({ canvas }, layers) => {
    const [source] = layers[0];
    canvas.style.aspectRatio = `${source.width} / ${source.height}`;
    const ratio = window.devicePixelRatio || 1;
    const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = false;
    for (const [layer, opacity] of layers) {
      context.globalAlpha = opacity;
      const [wide, high] = [width * view.zoom, height * view.zoom];
      context.drawImage(layer, width / 2 - view.x * wide, height / 2 - view.y * high, wide, high);
    }
    context.globalAlpha = 1;
  };

  const draw = () => {
    for (const [name, entry] of Object.entries(figures)) {
      if (entry.figure.hidden || !sources[name]) continue;
      if (name !== "over") paint(entry, [[sources[name], 1]]);
      else if (view.mode === "blink") paint(entry, [[view.front ? sources.train : sources.synthetic, 1]]);
      else paint(entry, [[sources.synthetic, 1], [sources.train, byId("opacity").value / 100]]);
    }
    byId("zoom").textContent = `${Number(view.zoom.toFixed(1))}×`;
    byId("stage").classList.toggle("zoomed", view.zoom > 1);
    byId("out").disabled = view.zoom <= 1;
    byId("in").disabled = view.zoom >= LARGEST_ZOOM;
  };

  const show = (mode) => {
    clearInterval(clock);
    // Where motion is unwelcome nothing blinks by itself: each press shows the other image.
    view.front = mode === "blink" && calm.matches && view.mode === "blink" ? !view.front : false;
    view.mode = mode;
    if (mode === "blink" && !calm.matches) {
      clock = setInterval(() => {
        view.front = !view.front;
        caption();
        draw();
      }, BLINK);
    }
    arrange();
  };

  // Zoom keeps the point (x, y), shares of what is on view, where it is.
  const zoom = (factor, x = 0.5, y = 0.5) => {
    const before = view.zoom;
    view.zoom = Math.max(1, Math.min(LARGEST_ZOOM, before * factor));
    pan((x - 0.5) * (1 / before - 1 / view.zoom), (y - 0.5) * (1 / before - 1 / view.zoom));
  };
  const pan = (right, down) => {
    const half = 0.5 / view.zoom;
    view.x = Math.max(half, Math.min(1 - half, view.x + right));
    view.y = Math.max(half, Math.min(1 - half, view.y + down));
    draw();
  };

  const stage = byId("stage");
  stage.addEventListener(
    "wheel",
    (event) => {
      const box = event.target.getBoundingClientRect();
      const out = event.deltaY > 0;
      if (event.target.tagName !== "CANVAS" || !event.deltaY || (out && view.zoom <= 1)) return; // the page scrolls on
      event.preventDefault();
      zoom(out ? 1 / 1.25 : 1.25, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    },
    { passive: false }
  );
  let held;
  stage.addEventListener("pointerdown", (event) => {
    if (event.target.tagName !== "CANVAS" || event.button) return;
    held = event.target;
    held.setPointerCapture(event.pointerId);
    stage.classList.add("held");
  });
  stage.addEventListener("pointermove", (event) => {
    if (!held) return;
    const box = held.getBoundingClientRect();
    pan(-event.movementX / box.width / view.zoom, -event.movementY / box.height / view.zoom);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    stage.addEventListener(name, () => {
      held = undefined;
      stage.classList.remove("held");
    });
  }
  new ResizeObserver(draw).observe(stage);

  // ---------------------------------------------------------------- controls

  for (const button of desk.querySelectorAll("button[data-decision]"))
    button.addEventListener("click", () => decide(button.dataset.decision));
  for (const button of desk.querySelectorAll("button[data-view]"))
    button.addEventListener("click", () => show(button.dataset.view));
  const reset = () => {
    for (const id of ["find", "flagged", "state", "class", "from", "to"]) if (byId(id)) byId(id).value = "";
    list();
  };
  const clicks = {
    clear: () => decide(""),
    back: () => step(-1),
    next: () => step(1),
    out: () => zoom(1 / 1.5),
    in: () => zoom(1.5),
    fit: () => zoom(0),
    reset,
    export: exportDecisions,
    import: () => byId("file").click(),
    keys: () => byId("help").showModal(),
    close: () => byId("help").close(),
  };
  for (const [id, act] of Object.entries(clicks)) byId(id).addEventListener("click", act);
  for (const id of ["find", "from", "to"]) byId(id).addEventListener("input", list);
  for (const id of ["flagged", "state", "class", "sort"]) byId(id)?.addEventListener("change", list);
  byId("note").addEventListener("input", () => current() && change(current(), { note: byId("note").value }));
  byId("by").addEventListener("input", remember);
  byId("opacity").addEventListener("input", draw);
  if (byId("channel")) {
    byId("channel").addEventListener("change", () => {
      facts.channel = Number(byId("channel").value);
      pairs.forEach((pair, place) => {
        if (!pair.pictures) return;
        rows[place].querySelectorAll("img").forEach((image, side) => {
          image.dataset.place = pair.pictures[facts.channel][side];
        });
        watcher.unobserve(rows[place]);
        watcher.observe(rows[place]);
      });
      if (current()) showPictures(current());
    });
  }
  byId("file").addEventListener("change", async () => {
    const [file] = byId("file").files;
    byId("file").value = "";
    if (!file) return;
    const wrong = readDecisions(await file.text());
    if (wrong) say(wrong, true);
  });
  for (const button of document.querySelectorAll("button.filter")) {
    button.addEventListener("click", () => {
      reset();
      byId("find").value = button.dataset.subject;
      list();
      desk.scrollIntoView();
      if (current()) rows[chosen].firstChild.focus({ preventScroll: true });
    });
  }
  window.addEventListener("beforeunload", (event) => {
    if (unexported && decided.size) event.preventDefault();
  });

  const KEYS = {
    c: () => decide("copy"),
    n: () => decide("not a copy"),
    u: () => decide("unsure"),
    x: () => decide(""),
    j: () => step(1),
    k: () => step(-1),
    s: () => show("side"),
    o: () => show("overlay"),
    b: () => show("blink"),
    "+": () => zoom(1.5),
    "=": () => zoom(1.5),
    "-": () => zoom(1 / 1.5),
    0: () => zoom(0),
    "/": () => byId("find").focus(),
    "?": clicks.keys,
  };
  const STEPS = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 };
  const PANS = { ArrowDown: [0, 1], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowLeft: [-1, 0] };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || byId("help").open || event.isComposing) return;
    const target = event.target;
    const typing = target.matches("textarea, select, input:not([type=checkbox]):not([type=range])");
    if (typing) {
      if (event.key === "Escape" && desk.contains(target) && current()) rows[chosen].firstChild.focus();
      return;
    }
    const inside = desk.contains(target);
    const box = desk.getBoundingClientRect();
    // With no focus anywhere, letters belong to the desk while it is in the middle of the window; arrows scroll.
    const before = target === document.body && box.top < innerHeight / 2 && box.bottom > innerHeight / 2;
    if (event.key.startsWith("Arrow")) {
      if (!inside || target.matches("input") || !(event.key in STEPS)) return;
      if (event.shiftKey) pan(...PANS[event.key].map((by) => (by * 0.15) / view.zoom));
      else step(STEPS[event.key]);
    } else {
      if (!(inside || before) || !byId("single").checked || !Object.hasOwn(KEYS, event.key)) return;
      KEYS[event.key]();
    }
    event.preventDefault();
  });

  // ---------------------------------------------------------------- begin

  document.documentElement.classList.add("scripted");
  desk.hidden = false;
  recall();
  pairs.forEach((pair, place) => {
    pair.place = place;
    rows.push(makeRow(pair, place));
    mark(pair);
  });
  showProgress();
  list();
  desk.dataset.ready = "true";
})();
