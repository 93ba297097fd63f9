"""How close each stage is to the bare UNet, and what a run will cost; see README.md."""
