"use strict";
// Draws the figures of the page from the values in the script tag "values". Text out of the log reaches the page by
// textContent alone, or escaped where Plotly reads tags.
(() => {
  const values = JSON.parse(document.getElementById("values").textContent);
  const root = document.documentElement;
  const touch = matchMedia("(pointer: coarse)").matches;
  const axes = ["xaxis", "yaxis"];

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const theme = () => ({ ink: colour("--ink"), line: colour("--line") });
  const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

  function themed(layout, zooms) {
    const { ink, line } = theme();
    const found = {
      ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: zooms ? "zoom" : false,
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: line, activecolor: ink },
    };
    for (const axis of axes) {
      const narrow = found[axis]?.type === "category" && innerWidth < 600 ? { tickfont: { size: 9 } } : {};
      found[axis] = { ...found[axis], ...narrow, gridcolor: line, linecolor: line, zerolinecolor: line, fixedrange: !zooms };
    }
    return found;
  }

  function draw(canvas, figure) {
    const zooms = figure.zooms && !touch;
    const config = {
      responsive: true, displaylogo: false, displayModeBar: zooms ? "hover" : false,
      modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
    };
    return Plotly.react(canvas, figure.data, themed(figure.layout, zooms), config);
  }

  async function choose(canvas, choice) {
    if (choice.height) canvas.style.height = `${choice.height}px`;
    await Plotly.update(canvas, choice.data, choice.layout);
    if (choice.height) Plotly.Plots.resize(canvas);
    if (Object.keys(choice.first).length) await Plotly.restyle(canvas, choice.first, [0]);
  }

  async function start(place) {
    const figure = values.figures[place.dataset.figure];
    const canvas = place.querySelector(".canvas");
    await draw(canvas, figure);
    const select = place.querySelector("select");
    if (select) select.addEventListener("change", () => choose(canvas, figure.choices[select.selectedIndex]));
  }

  // --- a client beside its neighbours ---------------------------------------------------------------

  const clients = values.clients;
  const element = (tag, text = "", name = "") => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (name) made.className = name;
    return made;
  };

  function strips(id) {
    const shown = [id, ...clients.neighbours[id].map(([other]) => other)];
    const day = 24 * 3600 * 1000, begin = Date.parse(`${clients.start}T00:00:00Z`);
    const at = (bin) => new Date(begin + bin * clients.width * day).toISOString().slice(0, 10);
    const room = 0.8 / clients.types.length;
    const data = clients.types.map((type, place) => {
      const trace = {
        x: [], y: [], text: [], name: escaped(type.label), type: "scatter", mode: "markers", hoverinfo: "text",
        marker: { color: type.colour, opacity: 0.8, size: [], line: { width: 0 } },
      };
      shown.forEach((client, row) => {
        for (const [bin, events] of clients.histories[client].counts[type.name] ?? []) {
          trace.x.push(at(bin));
          trace.y.push(row - 0.4 + room * (place + 0.5));
          trace.marker.size.push(4 + Math.min(10, 1.6 * Math.log2(1 + events)));
          trace.text.push(`${at(bin)}: ${events} × ${escaped(type.label)}`);
        }
      });
      return trace;
    });
    const days = clients.rests.days[id] ?? [];
    if (days.length) {
      const most = Math.max(...days.map(([, move]) => move));
      data.push({
        x: days.map(([bin]) => at(bin)), y: days.map(() => -0.8), text: days.map(([, , said]) => said),
        name: "rests on", type: "scatter", mode: "markers", hoverinfo: "text",
        marker: { color: "#999999", symbol: "square", size: days.map(([, move]) => 2 + 16 * move / most), line: { width: 0 } },
      });
    }
    const names = shown.map((client, row) => (row ? `nearest ${row}` : "the client"));
    const shapes = shown.slice(1).map((_, row) => ({
      type: "line", xref: "paper", x0: 0, x1: 1, y0: row + 0.5, y1: row + 0.5, line: { width: 1, color: "#999999" },
    }));
    const layout = {
      margin: { l: 70, r: 8, t: 8, b: 30 }, showlegend: false, shapes, hovermode: "closest",
      xaxis: { type: "date", range: [at(-1), at(clients.bins)] },
      yaxis: {
        range: [shown.length - 0.5, days.length ? -1.2 : -0.5], showgrid: false,
        tickvals: [...(days.length ? [-0.8] : []), ...shown.map((_, row) => row)],
        ticktext: [...(days.length ? ["rests on"] : []), ...names],
      },
    };
    return { data, layout, zooms: false };
  }

  function events(id) {
    const table = element("table", "", "events");
    const head = table.createTHead().insertRow();
    for (const title of ["time", "event", "about"]) head.append(element("th", title));
    const body = table.createTBody();
    for (const [time, type, count, named] of clients.histories[id].newest) {
      const row = body.insertRow(), cell = element("td", "", "word"), dot = element("span", "", "dot");
      const known = clients.types.find((each) => each.name === type);
      dot.style.background = known.colour;
      cell.append(dot, count > 1 ? `${count} × ${known.label}` : known.label);
      const more = named.length && count > named.length ? ", and more" : "";
      row.append(element("td", time, "word"), cell, element("td", named.join(", ") + more));
    }
    const scroll = element("div", "", "scroll");
    scroll.append(table);
    return scroll;
  }

  function neighbour(id, cosine, place) {
    const made = element("details");
    const summary = element("summary", `nearest ${place + 1}: client ${clients.names[id]}, cosine ${cosine.toFixed(3)}: ${clients.about[id]}`);
    made.append(summary, events(id));
    return made;
  }

  async function show(id) {
    const place = document.getElementById("client");
    place.querySelector("select").value = String(id);
    document.getElementById("about-client").textContent = `Client ${clients.names[id]}: ${clients.about[id]}.`;
    document.getElementById("rests").textContent = clients.rests.lines[id];
    document.getElementById("newest").replaceChildren(events(id));
    const beside = clients.neighbours[id].map(([other, cosine], row) => neighbour(other, cosine, row));
    document.getElementById("neighbours").replaceChildren(...beside);
    await draw(place.querySelector(".canvas"), strips(id));
    const map = document.querySelector('[data-figure="map"] .canvas');
    const marked = [clients.neighbours[id].map(([other]) => other), [id]];
    const [x, y] = [0, 1].map((axis) => marked.map((group) => group.map((each) => clients.points[each][axis])));
    const last = map.data.length - 2;
    await Plotly.restyle(map, { x, y }, [last, last + 1]);
  }

  async function startClients() {
    const select = document.querySelector("#client select");
    select.addEventListener("change", () => show(Number(select.value)));
    document.getElementById("another").addEventListener("click", () => {
      const others = clients.drawn.filter((id) => String(id) !== select.value);
      if (others.length) show(others[Math.floor(Math.random() * others.length)]);
    });
    await show(clients.drawn[0]);
  }

  // --- all of it ------------------------------------------------------------------------------------

  function recolour() {
    const { ink, line } = theme();
    const change = { "font.color": ink };
    for (const axis of axes) for (const part of ["gridcolor", "linecolor", "zerolinecolor"]) change[`${axis}.${part}`] = line;
    for (const canvas of document.querySelectorAll(".canvas")) Plotly.relayout(canvas, change);
  }

  async function all() {
    for (const place of document.querySelectorAll("[data-figure]")) await start(place);
    if (clients) await startClients();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
    root.dataset.ready = "yes";
  }
  all();
})();
