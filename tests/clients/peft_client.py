"""PEFT: LoRA on attention, shared and dense layers and all routed experts, saved and loaded again."""

import json
import sys
import tempfile

import peft
import torch
from transformers import AutoModelForCausalLM

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def main(request, answer):
    def base():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32)

    model = base()
    # transformers 5 keeps a layer's experts as two parameters, which PEFT adapts by their name
    experts = [
        name for name, _ in model.named_parameters() if name.endswith(("experts.gate_up_proj", "experts.down_proj"))
    ]
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=ATTENTION, target_parameters=experts, lora_dropout=0.0)
    model = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    batch, losses = torch.tensor(request["tokens"]), []
    for _ in range(8):
        loss = model(batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    adapted = {name for name, p in model.named_parameters() if p.requires_grad and "experts" in name}
    model.eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        again = peft.PeftModel.from_pretrained(base(), folder).eval()
        difference = (model(batch).logits - again(batch).logits).abs().max().item()
    return {
        "version": peft.__version__,
        "rows": request["tokens"],
        "labels": request["tokens"],
        "losses": losses,
        "reloaded_difference": difference,
        "adapted_experts": len(adapted),
    }


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        asked = json.load(file)
    facts = main(asked, sys.argv[2])
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(facts, file, ensure_ascii=False)
