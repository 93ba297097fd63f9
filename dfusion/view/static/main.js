// The app: every tab.

import * as compare from "./compare.js";
import * as pairs from "./pairs.js";
import * as rate from "./rate.js";
import * as runs from "./runs.js";
import { start } from "./tabs.js";
import * as thresholds from "./thresholds.js";

start([
  ["runs", "Runs", runs],
  ["pairs", "Pairs", pairs],
  ["compare", "Before and after", compare],
  ["thresholds", "Thresholds", thresholds],
  ["rate", "Rate", rate],
]);
