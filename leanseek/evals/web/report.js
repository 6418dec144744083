// Draws the charts of the page from the JSON in it; colours come from the style sheet, so that they follow the theme.
"use strict";
(() => {
  const HEIGHT = 220;
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const short = (v) => (Math.abs(v) >= 1000 ? `${+(v / 1000).toPrecision(3)}k` : `${+v.toPrecision(3)}`);
  const formats = {
    number: short,
    percent: (v) => `${+(100 * v).toFixed(1)}%`,
    log: (v) => v.toExponential(1).replace(".0e", "e"),
  };
  const ranges = {
    number: undefined,
    percent: (u, low, high) => [0, Math.min(1, Math.max(0.1, (high ?? 0) * 1.1))],
    log: undefined,
  };

  const options = (chart, width) => {
    const format = (v) => (v == null ? "" : formats[chart.scale](v));
    const axis = {
      stroke: () => colour("--muted"),
      font: "12px system-ui, sans-serif",
      grid: { stroke: () => colour("--edge"), width: 1 },
      ticks: { show: false },
    };
    return {
      width,
      height: HEIGHT,
      cursor: { y: false, drag: { x: false, y: false } },
      scales: {
        x: { time: false },
        y: { distr: chart.scale === "log" ? 3 : 1, range: ranges[chart.scale] },
      },
      axes: [
        { ...axis, size: 28, gap: 4, values: (u, all) => all.map((v) => (v == null ? "" : short(v))) },
        { ...axis, size: chart.scale === "log" ? 58 : 50, values: (u, all) => all.map(format) },
      ],
      series: [
        { label: "step", value: (u, v) => short(v ?? chart.steps[chart.steps.length - 1]) },
        ...chart.series.map((series) => {
          const stroke = () => colour(`--c${series.colour % 6}`);
          const faint = series.style === "faint";
          return {
            label: series.label,
            class: faint ? "faint" : undefined,
            stroke: faint ? () => `${stroke()}55` : stroke,
            width: faint ? 1 : 2,
            spanGaps: true,
            points: { show: series.style === "dots", size: 6, fill: stroke },
            // Without a finger or mouse on the chart: where the curve ended.
            value: (u, v, index, at) => format(at == null ? series.values.findLast((one) => one != null) : v) || "-",
          };
        }),
      ],
    };
  };

  const charts = JSON.parse(document.getElementById("data").textContent);
  const plots = [];
  for (const place of document.querySelectorAll(".plot")) {
    const chart = charts[Number(place.dataset.chart)];
    const data = [chart.steps, ...chart.series.map((series) => series.values)];
    const plot = new uPlot(options(chart, place.clientWidth), data, place);
    plots.push(plot);
    new ResizeObserver(() => {
      if (place.clientWidth && place.clientWidth !== plot.width) plot.setSize({ width: place.clientWidth, height: HEIGHT });
    }).observe(place);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach((plot) => plot.redraw()));
})();
