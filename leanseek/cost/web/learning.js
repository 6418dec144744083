(() => {
  const IN_TURN = null;
  const found_ways = ({ hardware, reply }) => data.hardware[hardware].ways[reply];
  const round_s = ([split, sample_s, train_s]) => (split === IN_TURN ? sample_s + train_s : Math.max(sample_s, train_s));
  const compute = (asked) => {
    const row = data.hardware[asked.hardware];
    const chosen = found_ways(asked)[asked.way];
    const hours = ((asked.steps / data.updates) * round_s(chosen)) / 3600;
    const joules = hours * 3600 * row.watts * data.devices;
    return {
      split: chosen[0], sample_s: chosen[1], train_s: chosen[2], hours, device_hours: hours * data.units,
      usd: hours * data.devices * asked.price, joules, carbon_g: (joules / 3.6e6) * data.grams_per_kwh,
    };
  };
  window.leanseekPlan = { compute, data };

  const asked = { ...data.planned };
  const words = (split) => (split === IN_TURN ? "in turn" : `${Number((100 * split).toPrecision(3))}%`);
  const seconds = (value) => (value < 120 ? `${short(value)} s` : value < 7200 ? `${short(value / 60)} min` : `${short(value / 3600)} h`);
  const set = (id, values) => { for (const [name, value] of Object.entries(values)) at(id).setAttribute(name, value); };
  const draw = () => {
    const all = found_ways(asked);
    // What takes far longer than the best way would flatten all others: columns end at three times its seconds.
    const most = 3 * Math.min(...all.map(round_s));
    const height = (value) => (200 * Math.min(value, most)) / most;
    all.forEach(([split, sample_s, train_s], n) => {
      const x = 62 + 58 * n, [a, b] = [height(sample_s), height(train_s)];
      const stacked = split === IN_TURN;
      set(`sample-${n}`, { x, y: 210 - a, width: stacked ? 44 : 21, height: a });
      set(`train-${n}`, { x: stacked ? x : x + 23, y: stacked ? 210 - a - b : 210 - b, width: stacked ? 44 : 21, height: b });
      at(`sample-${n}`).firstElementChild.textContent = `sampling ${seconds(sample_s)}, ${words(split)}`;
      at(`train-${n}`).firstElementChild.textContent = `training ${seconds(train_s)}, ${words(split)}`;
      say(`split-${n}`, words(split));
    });
    set("chosen", { x: 60 + 58 * asked.way, width: 50 });
  };
  const show = () => {
    const found = compute(asked);
    const best = found_ways(asked).reduce((a, b) => (round_s(b) < round_s(a) ? b : a));
    say("steps-said", short(asked.steps, 4));
    say("reply-said", data.replies[asked.reply].toLocaleString("en"));
    say("way-said", words(found.split));
    say("price-said", `$${Number(asked.price.toPrecision(3))}`);
    say("sample", seconds(found.sample_s));
    say("train", seconds(found.train_s));
    say("hours", short(found.hours, 4));
    say("device-hours", short(found.device_hours, 4));
    say("money", `$${short(found.usd, 4)}`);
    say("energy", watt_hours(found.joules / 3600));
    say("carbon", grams(found.carbon_g));
    say("best", `${words(best[0])}, ${seconds(round_s(best))} a round`);
    draw();
  };
  for (const [name, row] of Object.entries(data.hardware)) at("hardware").add(new Option(row.title, name));
  at("hardware").value = asked.hardware;
  at("steps").value = 500;
  at("reply").value = asked.reply;
  at("way").value = asked.way;
  at("price").value = Math.round(100 * asked.price);
  const on = (id, change) => at(id).addEventListener("input", (event) => { change(Number(event.target.value)); show(); });
  on("steps", (step) => { asked.steps = Math.max(1, Math.round(onLog(step, data.planned.steps))); });
  on("reply", (step) => {
    if (data.hardware[asked.hardware].ways[step].length) asked.reply = step;
    at("reply").value = asked.reply;
  });
  on("way", (step) => { asked.way = step; });
  on("price", (step) => { asked.price = step / 100; });
  at("hardware").addEventListener("change", (event) => {
    asked.hardware = event.target.value;
    if (!found_ways(asked).length) asked.reply = data.planned.reply;
    asked.price = data.hardware[asked.hardware].usd_per_hour ?? asked.price;
    at("reply").value = asked.reply;
    at("price").value = Math.round(100 * asked.price);
    show();
  });
  at("ask").addEventListener("submit", (event) => event.preventDefault());
  show();
})();
