"""vLLM offline on CPU: `python vllm_client.py REQUEST ANSWER`; imports nothing of this project."""

import json
import os
import sys

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

import numpy as np
import vllm


def main(request, answer):
    llm = vllm.LLM(
        request["model"],
        dtype=request["dtype"],
        max_model_len=request["max_length"],
        max_logprobs=-1,
        enforce_eager=True,
        seed=0,
    )
    rows = llm.generate(
        [vllm.TokensPrompt(prompt_token_ids=row) for row in request["tokens"]],
        vllm.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=-1),
    )
    # the scores at a position are of the token that stands there: those after the last one are not among them
    scores = [
        [[position[token].logprob for token in range(request["vocab_size"])] for position in row.prompt_logprobs[1:]]
        for row in rows
    ]
    np.save(answer + ".npy", np.array(scores, dtype=np.float32))
    outputs = llm.generate(request["prompts"], vllm.SamplingParams(max_tokens=request["new_tokens"], temperature=0))
    try:
        (chat,) = llm.chat([{"role": "user", "content": request["prompts"][0]}], vllm.SamplingParams(max_tokens=4))
        chat = f"answers in {len(chat.outputs[0].token_ids)} tokens"
    except Exception as error:  # what it says is the result
        chat = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return {
        "version": vllm.__version__,
        "ids": [list(output.prompt_token_ids) for output in outputs],
        "generated": [list(output.outputs[0].token_ids) for output in outputs],
        "text": [output.outputs[0].text for output in outputs],
        "chat": chat,
    }


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        asked = json.load(file)
    facts = main(asked, sys.argv[2])
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(facts, file, ensure_ascii=False)
