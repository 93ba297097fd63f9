// The page of one experiment, which works without the app: what the app would answer is inside it.

import * as compare from "./compare.js";
import { answers } from "./dom.js";
import * as pairs from "./pairs.js";
import { start } from "./tabs.js";

const compared = answers.catalogue[0].comparisons.length > 0;
start([["pairs", "Pairs", pairs], ...(compared ? [["compare", "Before and after", compare]] : [])]);
