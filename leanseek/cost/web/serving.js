(() => {
  // The cheapest of the planned ways that is at least so fast; the fastest where none is.
  const way = (row, speed) => {
    const fast = row.rates.filter(([, user]) => user >= speed * (1 - 1e-9));
    return fast.length ? fast.reduce((a, b) => (b[2] > a[2] ? b : a)) : row.rates.reduce((a, b) => (b[1] > a[1] ? b : a));
  };
  const compute = ({ hardware, speed, requests, price, busy, hits }) => {
    const row = data.hardware[hardware];
    const [texts, user, device] = way(row, speed);
    const read_s = (1 - hits) / row.prefill;
    const each_s = data.prompt * read_s + data.reply / device;
    const devices = (requests * each_s) / busy;
    const joules_a_day = requests * 86400 * each_s * row.watts;
    const million = (seconds) => (price / 3600) * seconds * 1e6 / busy;
    return {
      texts, user, device, devices, prompt_usd: million(read_s), reply_usd: million(1 / device),
      usd_a_day: devices * 24 * price, joules: row.watts / device, joules_a_day,
      carbon_g_a_day: (joules_a_day / 3.6e6) * data.grams_per_kwh,
    };
  };
  window.leanseekPlan = { compute, data };

  const [left, right, top, bottom] = data.frame;
  const place = ([[x0, x1], [y0, y1]], x, y) => {
    const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
    const across = Math.log(clamp(x, x0, x1) / x0) / Math.log(x1 / x0);
    const up = Math.log(clamp(y, y0, y1) / y0) / Math.log(y1 / y0);
    return [left + (right - left) * across, bottom - (bottom - top) * up];
  };
  const draw = (name, scales, points, chosen) => {
    at(`${name}-line`).setAttribute("points", points.map(([x, y]) => place(scales, x, y).join()).join(" "));
    const [x, y] = place(scales, ...chosen);
    at(`${name}-point`).setAttribute("cx", x);
    at(`${name}-point`).setAttribute("cy", y);
  };

  const asked = { ...data.planned };
  const dollars = (value) => `$${short(value)}`;
  const show = () => {
    const row = data.hardware[asked.hardware];
    const found = compute(asked);
    say("speed-said", short(found.user));
    say("requests-said", short(asked.requests));
    say("price-said", `$${Number(asked.price.toPrecision(3))}`);
    say("busy-said", `${Math.round(100 * asked.busy)}%`);
    say("hits-said", `${(100 * asked.hits).toFixed(0)}%`);
    say("prompt-cost", dollars(found.prompt_usd));
    say("reply-cost", dollars(found.reply_usd));
    say("texts", found.texts.toLocaleString("en"));
    say("devices", short(found.devices, 4));
    say("money", dollars(found.usd_a_day));
    say("joules", `${short(found.joules)} J`);
    say("energy", watt_hours(found.joules_a_day / 3600));
    say("carbon", grams(found.carbon_g_a_day));
    draw("speed", data.scales.speed, row.rates.map(([, user, device]) => [user, device]), [found.user, found.device]);
    const usd = (device) => (asked.price / 3600 / device) * 1e6 / asked.busy;
    draw("cost", data.scales.cost, row.rates.map(([, user, device]) => [user, usd(device)]), [found.user, found.reply_usd]);
  };
  // The slider's ends are the slowest and the fastest way that there is.
  const span = () => {
    const users = data.hardware[asked.hardware].rates.map(([, user]) => user);
    return [Math.min(...users), Math.max(...users)];
  };
  const put = () => {
    const [low, high] = span();
    at("hardware").value = asked.hardware;
    at("speed").value = high > low ? Math.round((1000 * Math.log(asked.speed / low)) / Math.log(high / low)) : 0;
    at("requests").value = 500;
    at("price").value = Math.round(100 * asked.price);
    at("busy").value = Math.round(100 * asked.busy);
    at("hits").value = Math.round(100 * asked.hits);
  };
  for (const [name, row] of Object.entries(data.hardware)) at("hardware").add(new Option(row.title, name));
  const on = (id, change) => at(id).addEventListener("input", (event) => { change(Number(event.target.value)); show(); });
  on("speed", (step) => { const [low, high] = span(); asked.speed = low * (high / low) ** (step / 1000); });
  on("requests", (step) => { asked.requests = onLog(step, data.planned.requests); });
  on("price", (step) => { asked.price = step / 100; });
  on("busy", (step) => { asked.busy = step / 100; });
  on("hits", (step) => { asked.hits = step / 100; });
  at("hardware").addEventListener("change", (event) => {
    asked.hardware = event.target.value;
    asked.price = data.hardware[asked.hardware].usd_per_hour ?? asked.price;
    const [low, high] = span();
    asked.speed = Math.min(Math.max(asked.speed, low), high);
    const requests = at("requests").value;
    put();
    at("requests").value = requests;
    show();
  });
  at("ask").addEventListener("submit", (event) => event.preventDefault());
  put();
  show();
})();
