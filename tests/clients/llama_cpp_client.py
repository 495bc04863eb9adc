"""llama.cpp's runtime over a GGUF file: `python llama_cpp_client.py REQUEST ANSWER`; imports nothing of this project."""

import json
import sys

import llama_cpp
import numpy as np


def main(request, answer):
    llm = llama_cpp.Llama(
        request["gguf"], n_ctx=256, logits_all=True, n_threads=2, verbose=False, type_k=0, type_v=0, flash_attn=False
    )
    rows = []
    for row in request["tokens"]:
        llm.reset()
        llm.eval(row)
        logits = np.array(llm.scores[: len(row)], dtype=np.float64)
        logits -= logits.max(-1, keepdims=True)
        rows.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    np.save(answer + ".npy", np.array(rows, dtype=np.float32))
    ids, generated = [], []
    for prompt in request["prompts"]:
        ids.append(llm.tokenize(prompt.encode(), add_bos=False, special=False))
        llm.reset()
        llm.eval(ids[-1])
        tokens = []
        while len(tokens) < request["new_tokens"]:
            tokens.append(int(np.argmax(llm.scores[llm.n_tokens - 1])))
            if tokens[-1] == llm.token_eos():
                break
            llm.eval(tokens[-1:])
        generated.append(tokens)
    return {
        "version": llama_cpp.__version__,
        "ids": ids,
        "generated": generated,
        "text": [llm.detokenize(tokens).decode("utf-8", errors="replace") for tokens in generated],
        "eos": llm.token_eos(),
    }


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        asked = json.load(file)
    facts = main(asked, sys.argv[2])
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(facts, file, ensure_ascii=False)
