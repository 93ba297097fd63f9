"""The words that some settings may be: what can be refused before torch is imported."""

METHODS = ("dpo", "ddpo", "dpok")
RATIOS = ("ratio", "log_ratio")
REFERENCES = ("round", "initial")
SOURCES = ("dfusion", "naive", "inversion")
TUNES = ("lora", "full")
MERGES = ("xor", "or")
PLACES = ("items", "random")
PARTS = (
    *("self_q", "self_k", "self_v", "self_map", "self_out"),
    *("cross_map", "cross_out", "masa_map", "masa_out"),
)
STORE_DTYPES = ("fp32", "bf16", "fp16")
KEEPS = ("all", "last", "none")  # rounds trained on whose states are kept
TRACKERS = ("none", "wandb", "tensorboard")
