"use strict";
// What the pages' scripts share: their data, and figures in words.
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
const say = (id, text) => { at(id).textContent = text; };
