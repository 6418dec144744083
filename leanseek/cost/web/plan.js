(() => {
  const compute = ({ tokens, hardware, devices, price, mfu }) => {
    const row = data.hardware[hardware];
    const hours = (tokens * data.flops_per_token) / (row.flops * mfu) / 3600;
    const joules = hours * row.watts * 3600;
    return {
      device_hours: hours, days: hours / devices / 24, usd: hours * price, joules,
      carbon_g: (joules / 3.6e6) * data.grams_per_kwh,
    };
  };
  window.leanseekPlan = { compute, data };

  const asked = { ...data.planned };
  const show = () => {
    const found = compute(asked);
    at("tokens-said").textContent = short(asked.tokens);
    at("devices-said").textContent = asked.devices.toLocaleString("en");
    at("price-said").textContent = `$${Number(asked.price.toPrecision(3))}`;
    at("mfu-said").textContent = `${(100 * asked.mfu).toFixed(1)}%`;
    at("days").textContent = short(found.days);
    at("hours").textContent = short(found.device_hours, 4);
    at("money").textContent = `$${short(found.usd, 4)}`;
    at("energy").textContent = watt_hours(found.joules / 3600);
    at("carbon").textContent = grams(found.carbon_g);
  };
  for (const [name, row] of Object.entries(data.hardware)) at("hardware").add(new Option(row.title, name));
  const place = () => {
    at("hardware").value = asked.hardware;
    at("tokens").value = at("devices").value = 500;
    at("price").value = Math.round(100 * asked.price);
    at("mfu").value = Math.round(1000 * asked.mfu);
  };
  at("tokens").addEventListener("input", (event) => { asked.tokens = onLog(event.target.value, data.planned.tokens); show(); });
  at("devices").addEventListener("input", (event) => {
    asked.devices = Math.max(1, Math.round(onLog(event.target.value, data.planned.devices))); show();
  });
  at("price").addEventListener("input", (event) => { asked.price = event.target.value / 100; show(); });
  at("mfu").addEventListener("input", (event) => { asked.mfu = event.target.value / 1000; show(); });
  at("hardware").addEventListener("change", (event) => {
    asked.hardware = event.target.value;
    asked.price = data.hardware[asked.hardware].usd_per_hour ?? asked.price;
    at("price").value = Math.round(100 * asked.price);
    show();
  });
  at("ask").addEventListener("submit", (event) => event.preventDefault());
  place();
  show();
})();
