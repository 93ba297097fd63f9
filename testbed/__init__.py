"""A small text-to-image world with known truth: scenes, models trained on them, and a judge."""
