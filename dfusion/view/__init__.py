"""The local web app: runs, pairs, comparisons, thresholds and ratings in the browser."""
