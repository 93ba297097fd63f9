"""Train on D-Fusion's pairs in a loop of your own, here with the embedded testbed on a CPU.

    python examples/custom_loop.py             about 2 minutes on one core

For Stable Diffusion, take DFusionPipeline.from_pipe(your_pipe), your prompts and
clip_reward(Eval(), device).
"""

import json

import torch

from dfusion import DFusionPipeline, adopt, clip_reward, pair, score
from dfusion.settings.schema import Eval

PROMPTS = ["a square driving a car", "a square sailing a boat", "a square flying a plane"]
ITEMS = {prompt: [1, 4] for prompt in PROMPTS}  # the shape and the vehicle, by their places


def main(rounds: int = 2, images: int = 6) -> None:
    pipe = DFusionPipeline.from_pretrained("testbed/weights/diffusion")
    scorer = Eval(model="local-dir:testbed/weights/scorer", pretrained="")
    reward = clip_reward(scorer, torch.device("cpu"))
    trainer = pipe.trainer(learning_rate=2e-3, updates_per_inner_epoch=4, batch_size=8)
    for round_ in range(rounds):
        samples = pipe.sample(PROMPTS, ITEMS, 42, images_per_prompt=images, round=round_)
        samples = score(samples, reward)
        targets = score(pipe.fuse(pair(samples), fusion_steps="20-1"), reward)
        preferences = adopt(targets, threshold=0.8)
        updates = trainer.train_on(preferences)
        print(
            json.dumps(
                {
                    "round": round_,
                    "mean reward": round(sum(s.score for s in samples) / len(samples), 3),
                    "adopted": sum(p.fused for p in preferences),
                    "pairs": len(preferences),
                    "gradient norm": round(updates[-1]["grad_norm"], 5),
                }
            )
        )
    trainer.save("data/custom_loop")
    print("LoRA for pipe.load_lora_weights is in data/custom_loop")


if __name__ == "__main__":
    main()
