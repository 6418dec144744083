"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const short = (value, digits = 3) => {
    const units = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]];
    const found = units.find(([size]) => Math.abs(value) >= size);
    return found ? `${Number((value / found[0]).toPrecision(digits))}${found[1]}` : `${Number(value.toPrecision(digits))}`;
  };
  const watt_hours = (value) => `${short(value).replace("B", "G")}Wh`.replace(/(\d)([kMGTW])/, "$1 $2");
  const grams = (value) => {
    if (value >= 1e6) return `${short(value / 1e6)} t`;
    return value >= 1e3 ? `${short(value / 1e3)} kg` : `${short(value)} g`;
  };
  // A slider's thousand steps reach from a hundredth to a hundred times what was planned.
  const SPAN = 100;
  const onLog = (step, middle) => middle * SPAN ** ((step - 500) / 500);

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
