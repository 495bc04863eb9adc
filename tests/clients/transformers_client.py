"""Stock transformers: `python transformers_client.py REQUEST ANSWER`; imports nothing of this project."""

import json
import sys

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(request, answer):
    model, info = AutoModelForCausalLM.from_pretrained(
        request["model"], output_loading_info=True, dtype=getattr(torch, request["dtype"])
    )
    tokenizer = AutoTokenizer.from_pretrained(request["model"])
    generated, uncached, ids = [], [], []
    with torch.no_grad():
        rows = [model(torch.tensor([row])).logits[0].float() for row in request["tokens"]]
        for prompt in request["prompts"]:
            ids.append(tokenizer(prompt)["input_ids"])
            for use_cache, outputs in ((True, generated), (False, uncached)):
                given = torch.tensor([ids[-1]])
                tokens = model.generate(
                    given,
                    attention_mask=torch.ones_like(given),
                    max_new_tokens=request["new_tokens"],
                    do_sample=False,
                    use_cache=use_cache,
                )
                outputs.append(tokens[0, given.shape[1] :].tolist())
    np.save(answer + ".npy", torch.stack(rows).log_softmax(-1).numpy())
    return {
        "version": transformers.__version__,
        "class": type(model).__name__,
        # a tensor of no elements is nothing that a folder could lack
        "missing": [name for name in info["missing_keys"] if model.state_dict()[name].numel()],
        "unexpected": sorted(info["unexpected_keys"]),
        "ids": ids,
        "generated": generated,
        "generated_uncached": uncached,
        "text": [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in generated],
    }


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        asked = json.load(file)
    facts = main(asked, sys.argv[2])
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(facts, file, ensure_ascii=False)
