// The page of a finished session. Names are written as text only: they may be anything.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const by = (id) => document.getElementById(id);
  const name = (number) => data.names[number];

  // ---- figures -----------------------------------------------------------------------------------------------------

  const grouped = (number) => Math.round(number).toLocaleString("en-US");
  const bytes = (number) => {
    if (number < 1e3) return `${grouped(number)} B`;
    const units = ["kB", "MB", "GB", "TB", "PB", "EB"];
    let value = number / 1e3;
    let unit = 0;
    while (value >= 999.95 && unit < units.length - 1) {
      value /= 1e3;
      unit += 1;
    }
    return `${value.toFixed(value < 10 ? 2 : 1)} ${units[unit]}`;
  };
  const counted = (count, one) => `${grouped(count)} ${one}${count === 1 ? "" : "s"}`;

  // What is shown, with its place among the values of a row, and the words for it.
  const KINDS = [
    { id: "lost", label: "Lost", at: 0, none: "Nothing is known to be lost." },
    { id: "leaked", label: "Leaked", at: 2, none: "Nothing leaked." },
    { id: "allocated", label: "Allocated", at: 4, none: "Nothing was allocated." },
  ];
  const UNITS = [
    { id: "bytes", label: "Bytes", show: bytes },
    { id: "blocks", label: "Blocks", show: (count) => counted(count, "block") },
  ];
  const state = { kind: KINDS[1], unit: UNITS[0], zoom: null, words: "", leaks: 0, processes: 0 };
  const at = () => state.kind.at + UNITS.indexOf(state.unit);
  const shown = (number) => state.unit.show(number);

  // ---- elements ----------------------------------------------------------------------------------------------------

  const element = (tag, text, style) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (style) made.className = style;
    return made;
  };

  const switches = (id, choices, key, changed) => {
    const box = by(id);
    for (const choice of choices) {
      const button = element("button", choice.label);
      button.type = "button";
      button.id = choice.id;
      button.setAttribute("role", "radio");
      button.addEventListener("click", () => {
        state[key] = choice;
        changed();
      });
      box.append(button);
    }
  };

  // ---- the tree ----------------------------------------------------------------------------------------------------

  const VALUES = 6;
  const makeNode = (parent, label, frame) => ({
    parent,
    label,
    frame,
    depth: parent ? parent.depth + 1 : 0,
    kids: new Map(),
    values: new Float64Array(VALUES),
    isMatch: false,
  });

  // The functions of a row, the outermost first. What calls main is the same in all programs.
  const callers = (row) => {
    const frames = row.frames;
    if (!frames) return [];
    const main = frames.findIndex((number) => {
      const [label, , , , inlined] = data.frames[number];
      return name(label) === "main" && !inlined;
    });
    return (main < 0 ? frames : frames.slice(0, main + 1)).slice().reverse();
  };

  const root = makeNode(null, "all processes", null);
  for (const row of data.rows) {
    let node = root;
    const add = () => {
      for (let value = 0; value < VALUES; value += 1) node.values[value] += row.values[value] || 0;
    };
    const step = (key, label, frame) => {
      let kid = node.kids.get(key);
      if (!kid) {
        kid = makeNode(node, label, frame);
        node.kids.set(key, kid);
      }
      node = kid;
      add();
    };
    add();
    step(`p${row.process}`, name(row.process), null);
    if (row.missing !== null) step(`m${row.missing}`, name(row.missing), null);
    for (const number of callers(row)) {
      // Lines of one function are one frame of the picture.
      const label = data.frames[number][0];
      step(label, name(label), number);
    }
    row.leaf = node;
  }
  state.zoom = root;

  // ---- the search --------------------------------------------------------------------------------------------------

  const wordsOfFrame = (number) => {
    const [label, module, file] = data.frames[number];
    return `${name(label)}\n${name(module)}\n${name(file)}`.toLowerCase();
  };
  const isMatch = (text) => text.toLowerCase().includes(state.words);
  let frameMatches = [];
  const rowMatches = (row) =>
    !state.words
    || isMatch(name(row.process))
    || (row.missing !== null && isMatch(name(row.missing)))
    || (row.frames || []).some((number) => frameMatches[number]);

  const search = () => {
    const words = state.words;
    frameMatches = words ? data.frames.map((_, number) => wordsOfFrame(number).includes(words)) : [];
    const nodes = [root];
    while (nodes.length) {
      const node = nodes.pop();
      node.isMatch = Boolean(words) && node !== root
        && (node.frame === null ? isMatch(node.label) : frameMatches[node.frame] || isMatch(node.label));
      nodes.push(...node.kids.values());
    }
    const found = by("found");
    if (!words) {
      found.textContent = "";
      return;
    }
    const rows = data.rows.filter(rowMatches);
    const sum = rows.reduce((total, row) => total + (row.values[at()] || 0), 0);
    const share = root.values[at()] ? (100 * sum) / root.values[at()] : 0;
    found.textContent = `${counted(rows.length, "call stack")} found: ${shown(sum)} (${share.toFixed(1)} %)`;
  };

  // ---- the picture -------------------------------------------------------------------------------------------------

  const canvas = by("canvas");
  const LINE = 22;
  const MOST_LINES = 300;
  let drawn = [];

  const color = (node, isDark) => {
    const module = node.frame === null ? 0 : data.frames[node.frame][1];
    const hue = node.frame === null ? 215 : (module * 47 + 20) % 360;
    const saturation = node.frame === null ? 12 : isDark ? 32 : 58;
    return `hsl(${hue} ${saturation}% ${isDark ? 30 : 84}%)`;
  };

  // The nodes that are at least half a pixel wide, each with its place. Largest kids come first.
  const layOut = (width) => {
    const places = [];
    const value = at();
    const top = state.zoom;
    const ancestors = [];
    for (let node = top.parent; node; node = node.parent) ancestors.unshift(node);
    ancestors.forEach((node, depth) => places.push({ node, x: 0, width, depth, isAbove: true }));
    const first = ancestors.length;
    const open = [{ node: top, x: 0, width }];
    while (open.length) {
      const place = open.pop();
      const depth = first + place.node.depth - top.depth;
      if (depth >= MOST_LINES) continue;
      places.push({ ...place, depth, isAbove: false });
      let { x } = place;
      const total = place.node.values[value];
      if (!total) continue;
      const kids = [...place.node.kids.values()].filter((kid) => kid.values[value] > 0);
      kids.sort((one, other) => other.values[value] - one.values[value]);
      for (const kid of kids) {
        const part = (place.width * kid.values[value]) / total;
        if (part < 0.5) break;
        open.push({ node: kid, x, width: part });
        x += part;
      }
    }
    return places;
  };

  const draw = () => {
    const width = canvas.parentElement.clientWidth;
    const scale = window.devicePixelRatio || 1;
    drawn = layOut(width);
    const lines = 1 + drawn.reduce((most, place) => Math.max(most, place.depth), 0);
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(lines * LINE * scale);
    canvas.style.height = `${lines * LINE}px`;
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    const of = (variable) => style.getPropertyValue(variable).trim();
    const isDark = window.matchMedia("(prefers-color-scheme: dark)").matches;
    const [card, ink, match] = ["--card", "--ink", "--match"].map(of);
    pen.scale(scale, scale);
    pen.fillStyle = card;
    pen.fillRect(0, 0, width, lines * LINE);
    pen.font = "12px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace";
    pen.textBaseline = "middle";
    const letter = pen.measureText("m").width;
    for (const place of drawn) {
      const y = place.depth * LINE;
      const { node, x } = place;
      pen.globalAlpha = place.isAbove ? 0.5 : 1;
      pen.fillStyle = color(node, isDark);
      pen.fillRect(x, y, Math.max(place.width - 1, 0.5), LINE - 1);
      if (node.isMatch) {
        pen.fillStyle = match;
        pen.globalAlpha = 0.45;
        pen.fillRect(x, y, Math.max(place.width - 1, 0.5), LINE - 1);
        pen.globalAlpha = 1;
      }
      const room = Math.floor((place.width - 8) / letter);
      if (room >= 3) {
        const text = place.width > 260 ? `${node.label}  ${shown(node.values[at()])}` : node.label;
        pen.fillStyle = ink;
        pen.fillText(text.length > room ? `${text.slice(0, room - 1)}…` : text, x + 4, y + LINE / 2);
      }
      pen.globalAlpha = 1;
    }
    const total = root.values[at()];
    by("icicle").hidden = !total;
    by("under").textContent = total
      ? "Width is the amount. Click a box to zoom in, and one above it to zoom out."
      : state.kind.none;
    const unjudged = data.rows.reduce(
      (sum, row) => (row.values[0] === null ? sum + row.values[2 + UNITS.indexOf(state.unit)] : sum), 0);
    if (state.kind.id === "lost" && unjudged) {
      by("under").textContent += ` Of ${shown(unjudged)} more that leaked it is not known whether they are lost.`;
    }
    drawPath();
  };

  const drawPath = () => {
    const path = by("path");
    path.replaceChildren();
    const nodes = [];
    for (let node = state.zoom; node; node = node.parent) nodes.unshift(node);
    const skipped = nodes.length > 5 ? nodes.splice(1, nodes.length - 5).length : 0;
    nodes.forEach((node, number) => {
      if (skipped && number === 1) path.append(element("span", `… ${skipped} more …`, "soft"));
      const button = element("button", `${node.label} ${shown(node.values[at()])}`);
      button.type = "button";
      button.addEventListener("click", () => zoom(node));
      path.append(button);
    });
  };

  const zoom = (node) => {
    state.zoom = node;
    by("tip").hidden = true;
    draw();
  };

  const under = (event) => {
    const box = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const depth = Math.floor(y / LINE);
    return drawn.find((place) => place.depth === depth && x >= place.x && x < place.x + place.width);
  };

  const showTip = (event) => {
    const tip = by("tip");
    const place = event.pointerType === "touch" ? null : under(event);
    tip.hidden = !place;
    if (!place) return;
    const { node } = place;
    const lines = [element("div", node.label)];
    if (node.frame !== null) lines.push(element("div", placeOf(node.frame), "soft"));
    const parts = KINDS.map((kind) => {
      const [size, blocks] = [node.values[kind.at], node.values[kind.at + 1]];
      return `${kind.label.toLowerCase()} ${grouped(size)} bytes in ${counted(blocks, "block")}`;
    });
    lines.push(...parts.map((part) => element("div", part)));
    tip.replaceChildren(...lines);
    const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
    const below = event.clientY + 18;
    const top = below + tip.offsetHeight > window.innerHeight ? event.clientY - tip.offsetHeight - 10 : below;
    tip.style.left = `${Math.max(left, 8)}px`;
    tip.style.top = `${Math.max(top, 8)}px`;
  };

  // ---- the tables --------------------------------------------------------------------------------------------------

  const placeOf = (number) => {
    const [, module, file, line] = data.frames[number];
    if (file) return line === null ? name(file) : `${name(file)}:${line}`;
    return name(module);
  };

  const PART = 50;
  let ordered = [];

  const leakEntry = (row) => {
    const entry = element("details");
    const summary = element("summary");
    const unit = UNITS.indexOf(state.unit);
    summary.append(
      element("span", shown(row.values[at()]), "amount"),
      element("span", UNITS[1 - unit].show(row.values[state.kind.at + 1 - unit]), "soft"),
      element("span", name(row.process), "comm"),
    );
    const inner = row.frames && row.frames.length ? row.frames[0] : null;
    const label = element("span", undefined, "name mono");
    const own = ownFrame(row);
    if (inner === null) label.textContent = row.missing === null ? name(row.process) : name(row.missing);
    else label.textContent = name(data.frames[inner][0]);
    const place = own !== undefined ? placeOf(own) : inner === null ? "" : placeOf(inner);
    if (place) label.append(element("span", `  ${place}`, "soft"));
    summary.append(label);
    entry.append(summary);
    entry.addEventListener("toggle", () => {
      if (entry.open && entry.childElementCount === 1) entry.append(...wholeStack(row));
    });
    return entry;
  };

  // The innermost frame with a source line says more than the library function that it calls, and one of the program's
  // own sources says most.
  const ownFrame = (row) => {
    const lines = (row.frames || []).filter((number) => data.frames[number][3] !== null);
    const base = (path) => path.slice(path.lastIndexOf("/") + 1);
    const exe = row.exe === null ? "" : base(name(row.exe));
    const isOwn = (number) => {
      const [, module, file] = data.frames[number];
      return base(name(module)) === exe && !name(file).startsWith("/usr/");
    };
    return lines.find(isOwn) ?? lines[0];
  };

  const wholeStack = (row) => {
    const facts = element("p", undefined, "facts soft");
    const values = KINDS.map((kind) => {
      const [size, blocks] = [row.values[kind.at], row.values[kind.at + 1]];
      if (size === null) return `${kind.label.toLowerCase()}: not known`;
      return `${kind.label.toLowerCase()}: ${grouped(size)} bytes in ${counted(blocks, "block")}`;
    });
    if (row.images) values.push(counted(row.images, "process").replace("processs", "processes"));
    if (row.exe !== null) values.push(name(row.exe));
    facts.textContent = values.join(" · ");
    const frames = element("ol", undefined, "frames");
    for (const number of row.frames || []) {
      const item = element("li", name(data.frames[number][0]));
      const inlined = data.frames[number][4] ? " (inlined)" : "";
      item.append(element("span", `  ${placeOf(number)}${inlined}`, "place"));
      frames.append(item);
    }
    if (row.missing !== null) frames.append(element("li", name(row.missing), "place"));
    const look = element("button", "Show in the picture");
    look.type = "button";
    look.addEventListener("click", () => {
      zoom(row.leaf);
      by("where").scrollIntoView();
    });
    const box = element("p", undefined, "facts");
    box.append(look);
    return [facts, frames, box];
  };

  const moreLeaks = () => {
    const next = ordered.slice(state.leaks, state.leaks + PART);
    by("leaks").append(...next.map(leakEntry));
    state.leaks += next.length;
    const more = ordered.length - state.leaks;
    by("more-leaks").hidden = more <= 0;
    by("more-leaks").textContent = `Show more (${grouped(more)})`;
  };

  const listLeaks = () => {
    const value = at();
    ordered = data.rows.filter((row) => row.values[value] > 0 && rowMatches(row));
    ordered.sort((one, other) => other.values[value] - one.values[value]);
    by("leaks").replaceChildren();
    state.leaks = 0;
    moreLeaks();
    if (!ordered.length) by("leaks").append(element("p", state.words ? "Nothing found." : state.kind.none, "soft"));
  };

  const HEADINGS = ["PID", "Command", "User", "Allocated", "Leaked", "Lost", "End", "Note"];
  const isNumber = (column) => column === 0 || (column >= 3 && column <= 5);

  const moreProcesses = () => {
    const next = data.processes.slice(state.processes, state.processes + PART);
    for (const process of next) {
      const line = element("tr");
      const [pid, comm, user, allocated, leaked, lost, end, note] = process;
      const cells = [pid, name(comm), name(user), bytes(allocated), leaked === null ? "–" : bytes(leaked),
        lost === null ? "?" : bytes(lost), name(end), name(note)];
      cells.forEach((cell, column) => {
        const made = element("td", String(cell), isNumber(column) ? "number" : "");
        if (column === 5 && lost > 0) made.classList.add("bad");
        line.append(made);
      });
      by("processes").append(line);
    }
    state.processes += next.length;
    const more = data.processes.length - state.processes;
    by("more-processes").hidden = more <= 0;
    by("more-processes").textContent = `Show more (${grouped(more)})`;
  };

  // ---- the whole ---------------------------------------------------------------------------------------------------

  const update = () => {
    for (const choice of [...KINDS, ...UNITS]) {
      const isOn = choice === state.kind || choice === state.unit;
      by(choice.id).setAttribute("aria-checked", String(isOn));
    }
    search();
    draw();
    listLeaks();
  };

  const say = (id, text) => {
    by(id).textContent = text;
    by(id).hidden = !text;
  };

  const head = () => {
    say("command", data.command);
    say("said", data.said);
    if (data.verdict) {
      say("verdict", `gate ${data.verdict}`);
      by("verdict").classList.add(data.verdict);
    }
    const times = [data.began, data.ended].filter(Boolean).map((time) => new Date(time * 1e3).toLocaleString());
    say("times", [times.join(" – "), ...data.hosts].filter(Boolean).join(" · "));
    document.title = data.command ? `memleak: ${data.command}` : "memleak";
    for (const [label, text] of [
      ["Lost", data.lost === null ? "not known" : bytes(data.lost)],
      ["Leaked", bytes(data.leaked)],
      ["Allocated", bytes(data.allocated)],
      ["Processes", grouped(data.count)],
    ]) {
      const figure = element("div");
      figure.append(element("dt", label), element("dd", text));
      by("figures").append(figure);
    }
    if (data.moreStacks) {
      say("left-out-stacks", "Call stacks by which less leaked have no room here. What they allocated is [stack unknown].");
    }
    if (data.more) say("left-out", `${grouped(data.more)} more that leaked less are not listed.`);
  };

  head();
  switches("kinds", KINDS, "kind", update);
  switches("units", UNITS, "unit", update);
  state.kind = root.values[0] > 0 ? KINDS[0] : root.values[2] > 0 ? KINDS[1] : KINDS[2];
  const heading = element("tr");
  HEADINGS.forEach((text, column) => heading.append(element("th", text, isNumber(column) ? "number" : "")));
  by("processes").append(heading);
  moreProcesses();
  by("more-leaks").addEventListener("click", moreLeaks);
  by("more-processes").addEventListener("click", moreProcesses);
  canvas.addEventListener("click", (event) => {
    const place = under(event);
    if (place) zoom(place.node);
  });
  canvas.addEventListener("pointermove", showTip);
  canvas.addEventListener("pointerleave", () => { by("tip").hidden = true; });
  let waiting = 0;
  by("search").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      state.words = event.target.value.trim().toLowerCase();
      update();
    }, 120);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && event.target !== by("search")) zoom(root);
  });
  window.addEventListener("resize", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  update();
})();
